"""Everything global that a run needs, set for its duration and put back afterwards."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import pyro
import torch

__all__ = ["default_dtype", "evaluating", "isolated", "seeded", "unchecked"]

# The first gradient of a process starts a thread for each device there is. Tracing makes devices up
# where there are none, and gradients are refused in copies of a process with threads for these
# (`judge.workers` makes such copies): so the first one comes before anything is traced.
if torch.cuda.device_count() == 0:
    with torch.inference_mode(mode=False), torch.enable_grad():
        torch.ones((), device="cpu", requires_grad=True).backward()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` torch's default floating-point type inside the block.

    Args:
        dtype: A floating-point dtype.
    """
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class _Evaluated:
    """A part of a module inside blocks: its own mode, and how many of them there are."""

    training: bool
    blocks: int = 0


_evaluated: WeakKeyDictionary[torch.nn.Module, _Evaluated] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in its mode of evaluation inside the block, and each part back in its own after.

    Blocks may overlap, as those of several threads do: a part is put back after the last of them.

    Args:
        module: The module.
    """
    marked: list[torch.nn.Module] = []
    try:
        with _lock:
            for part in module.modules():
                marked.append(part)
                _evaluated.setdefault(part, _Evaluated(part.training)).blocks += 1
                part.training = False
        yield
    finally:
        with _lock:
            for part in marked:
                _evaluated[part].blocks -= 1
                if not _evaluated[part].blocks:
                    part.training = _evaluated.pop(part).training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators inside the block, and restore them after.

    Args:
        seed: The seed, at least 0.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            pyro.set_rng_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch Pyro's and torch's argument validation off inside the block.

    Modules keep their `PyroParam`s to themselves inside, so that none reaches the global store.
    """
    with pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
        yield


@contextmanager
def isolated(seed: int, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Give a run its own seed, default dtype and parameter store; change nothing outside.

    Args:
        seed: Seed of all generators inside.
        dtype: Default dtype inside, or None to keep the present one.
    """
    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        stack.enter_context(default_dtype(dtype or torch.get_default_dtype()))
        stack.enter_context(pyro.validation_enabled(pyro.poutine.is_validation_enabled()))
        stack.enter_context(pyro.settings.context(module_local_params=True))
        # AutoGuides run the model once where no handler of ours sees its parameters.
        stack.enter_context(pyro.get_param_store().scope())
        yield
