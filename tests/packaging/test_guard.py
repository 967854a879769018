"""Negative controls: the guard of tests/conftest.py fails the test, or the call, at fault."""

from pathlib import Path

import pytest

CHANGES = {
    "dtype": "torch.set_default_dtype(torch.float64)",
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "gradients": "torch.set_grad_enabled(False)",
    "pyro_validation": "pyro.enable_validation(False)",
    "torch_validation": "torch.distributions.Distribution.set_default_validate_args(False)",
    "parameter": "pyro.param('weight', torch.zeros(2))",
    "handler": "pyro.poutine.trace().__enter__()",
    "print_options": "np.set_printoptions(precision=3)",
    "error_handling": "np.seterr(all='ignore')",
    "backend": "matplotlib.use('svg')",
    "matplotlib_settings": "matplotlib.rcParams['lines.linewidth'] = 9.0",
}

INNER_TESTS = """
import random

import matplotlib
import numpy as np
import pyro
import pytest
import torch

CHANGES = {changes!r}


@pytest.mark.parametrize("name", CHANGES)
def test_change(name):
    exec(CHANGES[name])


def test_innocent():
    torch.rand(2), np.random.rand(), random.random()


def _fails(draw):
    draw()
    raise KeyError("the call's own error")


@pytest.mark.parametrize("draw", [lambda: torch.rand(2), np.random.rand, random.random])
def test_rng_unchanged_catches_a_draw(rng_unchanged, draw):
    with pytest.raises(AssertionError, match="random state"):
        with rng_unchanged():
            draw()
    with pytest.raises(AssertionError, match="random state"):
        with rng_unchanged():
            _fails(draw)
    with rng_unchanged():
        pass
"""


def test_the_guard_catches_each_change(pytester: pytest.Pytester, root: Path) -> None:
    """Each change fails its own test alone: the test after the last change passes."""
    pytester.makeconftest((root / "tests/conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(INNER_TESTS.format(changes=CHANGES))
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    # The guard fails a test while it is torn down, which pytest counts as passed and as an error.
    result.assert_outcomes(passed=len(CHANGES) + 4, errors=len(CHANGES))
    for name in CHANGES:
        result.stdout.fnmatch_lines([f"*AssertionError: *test_change?{name}? left changed *"])


@pytest.mark.parametrize("name", ["fit", "check", "compare", "load", "Posterior.predict"])
def test_calls_of_the_package_are_watched(name: str) -> None:
    """The functions that a test imports are the watched ones."""
    import ppl_gen

    function = ppl_gen
    for part in name.split("."):
        function = getattr(function, part)
    assert function.__code__.co_filename.endswith("conftest.py")
