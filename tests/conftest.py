"""What holds for every test: nothing global may be left changed, by the test or by the package."""

import functools
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import matplotlib
import numpy as np
import pyro
import pytest
import torch
from pyro.poutine import runtime
from torch.distributions import Distribution

import ppl_gen

hypothesis.settings.register_profile("ppl_gen", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ppl_gen")

# How to read each piece of global state, and how to put it back.
GLOBAL_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's validation of distributions": (
        lambda: Distribution._validate_args,
        Distribution.set_default_validate_args,
    ),
    "Pyro's settings": (pyro.settings.get, lambda settings: pyro.settings.set(**settings)),
    "Pyro's parameter store": (
        lambda: sorted(pyro.get_param_store().keys()),
        lambda _: pyro.clear_param_store(),
    ),
    "Pyro's stack of handlers": (
        lambda: list(runtime._PYRO_STACK),
        lambda stack: runtime._PYRO_STACK.__setitem__(slice(None), stack),
    ),
    "NumPy's print options": (np.get_printoptions, lambda options: np.set_printoptions(**options)),
    "NumPy's error handling": (np.geterr, lambda errors: np.seterr(**errors)),
    "matplotlib's settings": (matplotlib.rcParams.copy, matplotlib.rcParams.update),
}


def _rng_state() -> dict[str, list[Any]]:
    state: dict[str, list[Any]] = {
        "torch": torch.get_rng_state().tolist(),
        "NumPy": [part.tolist() if isinstance(part, np.ndarray) else part for part in _numpy()],
        "Python": list(random.getstate()),
    }
    if torch.cuda.is_initialized():
        state["CUDA"] = [device.tolist() for device in torch.cuda.get_rng_state_all()]
    return state


def _numpy() -> tuple[Any, ...]:
    return tuple(np.random.get_state(legacy=True))


@contextmanager
def _rng_unchanged(what: str = "the block") -> Iterator[None]:
    before = _rng_state()
    try:
        yield
    finally:
        after = _rng_state()
        changed = [name for name, state in before.items() if state != after[name]]
        assert not changed, f"{what} changed the random state of {', '.join(changed)}"


@contextmanager
def _globals_unchanged(what: str) -> Iterator[None]:
    before = {name: read() for name, (read, _) in GLOBAL_STATE.items()}
    try:
        yield
    finally:
        changes = []
        for name, (read, restore) in GLOBAL_STATE.items():
            after = read()
            if after != before[name]:
                changes.append(f"{name}: {_difference(before[name], after)}")
                # The tests that follow are not to blame.
                restore(before[name])
        assert not changes, f"{what} left changed " + "; ".join(changes)


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in before if before[key] != after.get(key)]
        before, after = {key: before[key] for key in keys}, {key: after.get(key) for key in keys}
    return f"{before!r} became {after!r}"


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    what = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _globals_unchanged(what), _rng_unchanged(what):
            return function(*args, **kwargs)

    return call


def _guard_package() -> None:
    """Watch every call of the package's functions and of the posterior's methods.

    This runs before a test module is imported, so that its `from ppl_gen import fit` gets the
    watched function; modules of the package that hold the function under any name get it too.
    """
    posterior = ppl_gen.Posterior
    for name, method in list(vars(posterior).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(posterior, name, _guarded(method))
    functions = [getattr(ppl_gen, name) for name in ppl_gen.__all__]
    guarded = {id(f): _guarded(f) for f in functions if inspect.isfunction(f)}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "ppl_gen":
            for name, value in list(vars(module).items()):
                if id(value) in guarded:
                    setattr(module, name, guarded[id(value)])


_guard_package()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the adapter, which run again with ArviZ 1.x."""
    for item in items:
        if item.path.name == "test_arviz.py":
            item.add_marker(pytest.mark.arviz)


@pytest.fixture(autouse=True)
def _nothing_global_left_changed(request: pytest.FixtureRequest) -> Iterator[None]:
    pyro.set_rng_seed(0)
    with _globals_unchanged(request.node.nodeid):
        yield


@pytest.fixture
def rng_unchanged() -> Callable[..., AbstractContextManager[None]]:
    """A context manager that fails if torch's, NumPy's or Python's random state changes in it."""
    return _rng_unchanged


@pytest.fixture(scope="session")
def root(pytestconfig: pytest.Config) -> Path:
    """The root of the checkout."""
    return pytestconfig.rootpath


@pytest.fixture(scope="session")
def shared_data(root: Path) -> Path:
    """Real data beside the checkout, in `../shared/data`."""
    folder = root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data of {folder}, which is not there")
    return folder
