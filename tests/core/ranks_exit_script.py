"""What two processes do for `test_ranks.py` of which one gives up what the other does not join."""

import atexit
import ctypes
import os
import signal
from types import FrameType

if os.environ["RANK"] == "1":
    # Last of all, for two seconds, with Python's lock held, so that a thread that wants it meets
    # the end of the interpreter. In place of the wait for such a moment, which is rare.
    atexit.register(ctypes.PyDLL(None).usleep, 2_000_000)

from ppl_gen.core.ranks import ranks


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    here = ranks()
    signal.signal(signal.SIGALRM, interrupt)
    try:
        with here.run("Begin anew."):
            if here.index == 0:
                signal.pause()
            signal.alarm(1)
            here.barrier()
    except KeyboardInterrupt:
        print("given up", flush=True)


if __name__ == "__main__":
    main()
