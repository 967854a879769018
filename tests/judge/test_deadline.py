"""A block that is interrupted when its time is up, and never afterwards."""

import signal
import threading
import time
from collections.abc import Callable

import pytest

from ppl_gen.inference.interrupt import deferred_interrupt
from ppl_gen.judge.deadline import Deadline


def _wait(until: Callable[[], object]) -> None:
    began = time.perf_counter()
    while not until() and time.perf_counter() - began < 60:
        time.sleep(0.001)


def test_it_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), Deadline(0.05) as deadline:
        _wait(lambda: False)
    assert deadline.passed


def test_it_leaves_alone_what_is_in_time() -> None:
    with Deadline(60.0) as deadline:
        pass
    assert not deadline.passed
    assert not any(isinstance(t, threading.Timer) and t.is_alive() for t in threading.enumerate())


def test_a_late_interrupt_does_not_get_out() -> None:
    """The clock rings at the very end of the block, over and over."""
    for _ in range(40):
        try:
            with Deadline(0.0005):
                time.sleep(0.0005)
        except KeyboardInterrupt:
            pass
        time.sleep(0.0001)  # nothing arrives here


def test_what_takes_note_of_it_goes_on() -> None:
    """As chains do, which stop where they can go on later."""
    noted: list[bool] = []
    with Deadline(0.02) as deadline, deferred_interrupt(lambda: noted.append(True)):
        _wait(lambda: noted)
    assert noted
    assert deadline.passed
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_errors_and_real_interrupts_pass_through() -> None:
    with pytest.raises(ValueError, match="own"), Deadline(60.0):
        raise ValueError("own")
    with pytest.raises(KeyboardInterrupt), Deadline(60.0) as deadline:
        raise KeyboardInterrupt
    assert not deadline.passed


def test_another_thread_is_left_alone() -> None:
    passed = []

    def work() -> None:
        with Deadline(0.0) as deadline:
            time.sleep(0.05)
        passed.append(deadline.passed)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed == [False]
