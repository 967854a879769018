"""The state of a training as tensors by name, as a folder keeps it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["give_generators", "pack", "take_generators", "unpack"]

_TENSOR = "<tensor>"
_NUMBERED = "<numbered>"
_PLAIN = "plain"


def pack(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a nested state as tensors by name: what is no tensor becomes the bytes of a JSON text.

    Args:
        state: Mappings and lists of tensors, numbers, texts and None, such as the `state_dict` of
            an optimizer.

    Raises:
        TypeError: If there is anything else in it.

    Example:
        >>> packed = pack({"step": 3, "moments": {0: torch.zeros(2)}})
        >>> unpack(packed)
        {'step': 3, 'moments': {0: tensor([0., 0.])}}
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_take(state, "", tensors))
    plain = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return {_PLAIN: plain, **{n: v.detach().cpu().clone() for n, v in tensors.items()}}


def unpack(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Undo `pack`.

    Args:
        tensors: What it returned.
    """
    state = _give(json.loads(bytes(tensors[_PLAIN].tolist())), tensors)
    assert isinstance(state, dict)
    return state


def _take(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        # JSON has keys of text only, and optimizers number their parameters.
        numbered = bool(value) and all(isinstance(key, int) for key in value)
        inside = {str(key): _take(item, f"{path}/{key}", tensors) for key, item in value.items()}
        return {_NUMBERED: inside} if numbered else inside
    if isinstance(value, list | tuple):
        return [_take(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    msg = f"{path.lstrip('/')}: expected numbers and tensors, got {type(value).__name__}."
    raise TypeError(msg)


def _give(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        if value.keys() == {_NUMBERED}:
            return {int(key): _give(item, tensors) for key, item in value[_NUMBERED].items()}
        return {key: _give(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_give(item, tensors) for item in value]
    return value


def take_generators(device: torch.device) -> dict[str, Any]:
    """Return where the generators of torch, NumPy and Python are.

    Args:
        device: The device whose generator is in use besides that of the CPU.
    """
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, second = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(gauss)],
        },
        "python": [version, list(internal), second],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def give_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators to where they were.

    Args:
        state: What `take_generators` returned.
        device: The device of the run.
    """
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy"]["rest"]
    keys = state["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, internal, second = state["python"]
    random.setstate((version, tuple(internal), second))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
