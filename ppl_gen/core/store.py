"""Saving a posterior to a folder and loading it: NetCDF, safetensors and JSON.

No pickle is read, and nothing that a folder names is imported: a built-in pair is looked up by name
among the package's own, a user's pair is passed in.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ppl_gen.core.errors import LoadError, unknown
from ppl_gen.core.pair import as_pair, guide_of, own_copy, pair_config
from ppl_gen.core.params import adopt_params
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import isolated, seeded
from ppl_gen.core.structure import trace_sites

__all__ = ["load", "save"]

FORMAT = 1
_MANIFEST = "posterior.json"
_DRAWS = "draws.nc"
_WEIGHTS = "weights.safetensors"
_DATA = "data.safetensors"
# The key that stands for a tensor inside of a dictionary or list of the data.
_TENSOR = "<tensor>"

# Where the classes are looked up that a folder may name.
_PAIRS = "ppl_gen.models"
_GUIDES = "ppl_gen.inference.guides"


def save(posterior: Posterior, path: Path, *, overwrite: bool = False) -> Path:
    """Write a posterior as `Posterior.save` describes: the folder is complete or not there."""
    path = Path(path)
    if path.exists() and not (overwrite and (path / _MANIFEST).is_file()):
        remedy = "Choose another folder, or remove it."
        if (path / _MANIFEST).is_file():
            remedy = "Choose another folder, or pass overwrite=True to replace the posterior in it."
        msg = f"cannot save to {path}: it exists. {remedy}"
        raise FileExistsError(msg)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        msg = f"cannot save to {path}: {error.strerror or error}. Choose a folder you can write to."
        raise type(error)(msg) from error
    try:
        scratch.chmod(0o755)
        _write(posterior, scratch)
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return path


def load(path: str | Path, pair: Any = None) -> Posterior:
    """Read a posterior that was written by `Posterior.save`.

    Args:
        path: The folder.
        pair: The pair that was fitted, or one with the same parameters; a copy of it receives the
            saved parameters. A built-in pair needs none. Without it the posterior has its draws,
            but cannot predict.

    Returns:
        The posterior.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        LoadError: If it is truncated, was changed, is of another version, or the pair given does
            not fit it.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    draws, stats, history = _read_draws(path / _DRAWS)
    weights = _read_tensors(path / _WEIGHTS)
    data = None
    if manifest["data"] is not None:
        tensors = _read_tensors(path / _DATA)
        data = {n: _give_tensors(v, tensors) for n, v in manifest["data"]["other"].items()}
        data |= tensors
    guide = None
    if manifest["guide"] is not None:
        guide = _rebuild(manifest["guide"], _GUIDES)
        _fill(guide, weights, "guide.", path)
    return Posterior(
        draws=draws,
        latents=tuple(manifest["latents"]),
        observed=tuple(manifest["observed"]),
        pair=_pair(manifest["pair"], pair, weights, data, path),
        data=data,
        dims={name: tuple(dims) for name, dims in manifest["dims"].items()},
        coords=manifest["coords"],
        sample_stats=stats,
        is_mcmc=manifest["is_mcmc"],
        guide=guide,
        history=history,
        elbo=None if manifest["elbo"] is None else tuple(manifest["elbo"]),
        local_plate=manifest["local_plate"],
        interrupted=manifest["interrupted"],
        provenance=manifest["provenance"],
    )


def _write(posterior: Posterior, folder: Path) -> None:
    from safetensors.torch import save_file

    _write_draws(posterior, folder / _DRAWS)
    weights: dict[str, torch.Tensor] = {}
    for prefix, module in (("pair.", posterior.pair), ("guide.", posterior.guide)):
        if module is not None:
            weights |= {f"{prefix}{name}": value for name, value in module.state_dict().items()}
    # safetensors refuses tensors that share memory, as the weights of a tied layer do.
    save_file(
        {n: v.detach().cpu().contiguous().clone() for n, v in weights.items()}, folder / _WEIGHTS
    )
    stored = posterior.data is not None and posterior.local_plate is None
    other: dict[str, Any] = {}
    if stored:
        assert posterior.data is not None
        tensors: dict[str, torch.Tensor] = {}
        other = {n: _take_tensors(v, n, tensors) for n, v in posterior.data.items()}
        other = {n: v for n, v in other.items() if n not in tensors}
        save_file({n: v.cpu().contiguous().clone() for n, v in tensors.items()}, folder / _DATA)
    files = sorted(entry.name for entry in folder.iterdir())
    for name in files:
        (folder / name).chmod(0o644)
    manifest = {
        "format": FORMAT,
        "pair": None if posterior.pair is None else _describe(posterior.pair, _PAIRS),
        "guide": None if posterior.guide is None else _describe(posterior.guide, _GUIDES),
        "latents": list(posterior.latents),
        "observed": list(posterior.observed),
        "dims": {name: list(dims) for name, dims in posterior.dims.items()},
        "coords": dict(posterior.coords),
        "is_mcmc": posterior.is_mcmc,
        "elbo": posterior.elbo,
        "local_plate": posterior.local_plate,
        "interrupted": posterior.interrupted,
        "provenance": dict(posterior.provenance),
        "data": {"other": _jsonable(other)} if stored else None,
        "files": {name: _digest(folder / name) for name in files},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _write_draws(posterior: Posterior, path: Path) -> None:
    import xarray as xr

    history = {} if posterior.history is None else {"loss": posterior.history}
    groups = {
        "posterior": posterior.draws,
        "sample_stats": posterior.sample_stats,
        "history": history,
    }
    mode: Literal["w", "a"] = "w"
    for group, values in groups.items():
        variables = {}
        # NetCDF forbids some of the characters that site names may have.
        for i, (name, value) in enumerate(values.items()):
            array = value.detach().cpu().numpy()
            attrs = {"site": name, "stored_as": str(array.dtype)}
            dims = [f"v{i}_{axis}" for axis in range(array.ndim)]
            variables[f"v{i}"] = (dims, array.astype("u1") if array.dtype == bool else array, attrs)
        xr.Dataset(variables).to_netcdf(path, mode=mode, group=group, engine="h5netcdf")
        mode = "a"


def _read_draws(
    path: Path,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor | None]:
    import xarray as xr

    groups: dict[str, dict[str, torch.Tensor]] = {}
    for group in ("posterior", "sample_stats", "history"):
        with xr.open_dataset(path, group=group, engine="h5netcdf") as dataset:
            groups[group] = {
                str(v.attrs["site"]): torch.from_numpy(v.values.astype(v.attrs["stored_as"]))
                for v in dataset.data_vars.values()
            }
    return groups["posterior"], groups["sample_stats"], groups["history"].get("loss")


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.is_file():
        msg = f"no posterior in {path}: it holds no {_MANIFEST}."
        raise FileNotFoundError(msg)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format"]
        files = dict(manifest.get("files", {}))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        msg = f"the posterior in {path} is damaged: {_MANIFEST} is truncated or was changed."
        raise LoadError(msg) from error
    if version != FORMAT:
        msg = (
            f"the posterior in {path} has format {version}, this ppl-gen reads format {FORMAT}. "
            "Load it with the version that wrote it, or fit again."
        )
        raise LoadError(msg)
    for name, digest in files.items():
        target = path / Path(name).name
        if not target.is_file() or _digest(target) != digest:
            what = "was changed or truncated" if target.is_file() else "is missing"
            msg = f"the posterior in {path} is damaged: {name} {what}. Restore it, or fit again."
            raise LoadError(msg)
    assert isinstance(manifest, dict)
    return manifest


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(module: nn.Module, package: str) -> dict[str, Any]:
    """Return what rebuilds a built-in class; of any other only its name, for messages."""
    name = type(module).__name__
    built_in = getattr(importlib.import_module(package), name, None) is type(module)
    return {"class": name, "config": _jsonable(pair_config(module)) if built_in else None}


def _rebuild(described: Mapping[str, Any], package: str) -> nn.Module:
    module = importlib.import_module(package)
    if described["class"] not in module.__all__:
        raise LoadError(str(unknown("class", described["class"], module.__all__)))
    with seeded(0):  # networks draw their first weights, which the saved ones replace
        rebuilt = getattr(module, described["class"])(**described["config"])
    assert isinstance(rebuilt, nn.Module)
    return rebuilt


def _pair(
    described: Mapping[str, Any] | None,
    given: Any,
    weights: dict[str, torch.Tensor],
    data: Mapping[str, Any] | None,
    path: Path,
) -> nn.Module | None:
    if described is None:
        return None
    if given is not None:
        pair = own_copy(as_pair(given))
        if type(pair).__name__ != described["class"]:
            msg = f"{path} holds a {described['class']}, got a {type(pair).__name__}."
            raise LoadError(msg)
    elif described["config"] is not None:
        pair = _rebuild(described, _PAIRS)
    else:
        return None
    state = _under("pair.", weights)
    if data is not None and pair.state_dict().keys() ^ state.keys():
        _run_once(pair, data)
    adopt_params(pair, state)
    _fill(pair, weights, "pair.", path)
    return pair


def _run_once(pair: nn.Module, data: Mapping[str, Any]) -> None:
    """Run a pair, because Pyro's AutoGuides make their parameters in their first run."""
    with isolated(0):
        for part in ("model", "guide") if guide_of(pair) is not None else ("model",):
            with contextlib.suppress(ValueError):  # the parameters that then lack are named
                trace_sites(pair, data, part)


def _fill(module: nn.Module, weights: dict[str, torch.Tensor], prefix: str, path: Path) -> None:
    """Give a module its saved tensors, in the dtype in which they were saved."""
    state = _under(prefix, weights)
    own = module.state_dict()
    wrong = sorted(
        (own.keys() ^ state.keys())
        | {n for n in own.keys() & state.keys() if own[n].shape != state[n].shape}
    )
    if wrong:
        msg = (
            f"the {type(module).__name__} given does not fit the one in {path}: its parameters "
            f"differ in {', '.join(wrong[:5])}{' and more' if len(wrong) > 5 else ''}."
        )
        raise LoadError(msg)
    module.load_state_dict(state, assign=True)


def _under(prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}


def _take_tensors(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Put the tensors inside of a value in a dictionary, and their names in their place."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {key: _take_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _give_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Undo `_take_tensors`, which leaves in the dictionary what was not inside of anything."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors.pop(value[_TENSOR])
        return {key: _give_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_give_tensors(item, tensors) for item in value]
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)
