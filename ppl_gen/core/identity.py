"""What makes two fits the same run: asked before a run is gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ppl_gen.core.arguments import move
from ppl_gen.core.description import PAIRS, describe, flat
from ppl_gen.core.loader import BatchStream
from ppl_gen.core.method import Method
from ppl_gen.core.pair import cast, own_copy, prepare
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import trace_sites

__all__ = ["differences", "identity_of", "options_of", "other_versions"]

Identity = Mapping[str, Mapping[str, Any]]

# Of differences of one kind: a network of other sizes has another value in each of its parameters.
_LINES = 5


def identity_of(
    pair: nn.Module,
    data: Mapping[str, Any],
    method: Method,
    seed: int,
    loader: BatchStream | None = None,
) -> dict[str, dict[str, Any]]:
    """Return what a run depends on, as JSON values.

    Args:
        pair: The pair.
        data: The data, as `bind` returns it.
        method: The method.
        seed: The seed.
        loader: What gives mini-batches, of which `data` are the first.

    Returns:
        By kind (data, pair, parameter, site, option) and name, values or digests.
    """
    found = {
        "data": _data(data, loader),
        "pair": flat(describe(pair, PAIRS)),
        "parameter": {name: _described(value) for name, value in pair.state_dict().items()},
        "option": {"method": type(method).__name__, "seed": seed, **options_of(method)},
        "site": _sites(pair, data, method) if method.is_mcmc else {},
    }
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(found, default=repr))
    return plain


def differences(before: Identity, after: Identity) -> list[str]:
    """Return in words what is not the same; of very much of a kind, the first few.

    Args:
        before: What a run depended on.
        after: What another one depends on.
    """
    found = []
    for kind, were in before.items():
        now = after[kind]
        names = [*were, *(name for name in now if name not in were)]
        values = [(name, were.get(name, "none"), now.get(name, "none")) for name in names]
        lines = [f"{kind} '{name}' was {old}, is {new}" for name, old, new in values if old != new]
        found += lines[:_LINES]
        if len(lines) > _LINES:
            found.append(f"and {len(lines) - _LINES} more like it")
    return found


def other_versions(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return in words which packages had another version; nothing where none had.

    Args:
        before: Versions by name, of a run. Python's own is of no account.
        after: Those of now.

    Example:
        >>> other_versions({"torch": "2.13.0", "numpy": "2.1"}, {"torch": "2.15.0", "numpy": "2.1"})
        'torch 2.13.0 (now 2.15.0)'
    """
    return ", ".join(
        f"{name} {version} (now {after[name]})"
        for name, version in before.items()
        if name != "python" and name in after and after[name] != version
    )


def options_of(method: Method) -> dict[str, Any]:
    """Return a method's options as JSON values; a posterior that it starts from as a digest."""
    plain = (bool, int, float, str, type(None))
    options: dict[str, Any] = {}
    for option in dataclasses.fields(method):
        value = getattr(method, option.name)
        if isinstance(value, Posterior):
            drawn = _digest(list(value.draws.values()))
            value = f"{str(value).splitlines()[0]} (draws {drawn})"
        options[option.name] = value if isinstance(value, plain) else _without_address(value)
    return options


def _without_address(value: object) -> str:
    """Return a value in words, without its place in memory, which is another one each time."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _data(data: Mapping[str, Any], loader: BatchStream | None) -> dict[str, Any]:
    if loader is None:
        return {name: _described(value) for name, value in data.items()}
    first = {f"{name} of the first batch": _described(value) for name, value in data.items()}
    return {**first, "number of batches": loader.size.num_batches}


def _described(value: Any) -> str:
    """Return shape, type and a digest of the tensors in a value, and all else as it is written."""
    tensors = list(_tensors(value))
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{tuple(value.shape)} {kind} with digest {_digest(tensors)}"
    if tensors:
        return f"{len(tensors)} tensors with digest {_digest(tensors)}"
    text = repr(value)  # which for some objects is their address, another one each time
    return type(value).__name__ if " at 0x" in text else text[:200]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(array.data)
    return found.hexdigest()[:16]


def _sites(pair: nn.Module, data: Mapping[str, Any], method: Method) -> dict[str, str]:
    """Return what each site of the model is, where all is cast as for the run."""
    dtype = getattr(method, "dtype", torch.float64)
    cpu = torch.device("cpu")
    with isolated(0, dtype):
        copied = cast(own_copy(pair), dtype, cpu)
        sites = trace_sites(copied, prepare(copied, move(data, dtype, cpu)))
    return {
        name: f"{site.kind} {site.distribution} {site.shape} on {type(site.support).__name__}"
        f"{''.join(f' in {plate.name}' for plate in site.plates)}"
        for name, site in sites.items()
    }
