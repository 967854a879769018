"""Saving a posterior to a folder and loading it: zarr, safetensors and JSON.

No pickle is read, and nothing that a folder names is imported: a built-in pair is looked up by name
among the package's own, a user's pair is passed in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppl_gen.core.archive import Archive, StoredDraws
from ppl_gen.core.description import (
    GUIDES,
    PAIRS,
    describe,
    differences_of_parts,
    is_whole,
    rebuild,
)
from ppl_gen.core.errors import LoadError
from ppl_gen.core.pair import as_pair, guide_of, own_copy
from ppl_gen.core.params import adopt_params
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import trace_sites

__all__ = ["Run", "chains_of", "finish", "identity_in", "load", "read", "save"]

FORMAT = 2
RESUME = "pg.fit(pair, data, method, out=..., resume=True) goes on with it."
_MANIFEST = "posterior.json"
_DRAWS = "draws.zarr"
_WEIGHTS = "weights.safetensors"
_DATA = "data.safetensors"
# Where the chains are, of a run by MCMC; the losses, of one by SVI, or where its training is.
_STATE = "state.safetensors"
# The checkpoint before it, in case that it is damaged.
_EARLIER_STATE = "state.earlier.safetensors"
_HISTORY = "history.loss"
_AXES = {
    "posterior": ("chain", "draw"),
    "sample_stats": ("chain", "draw"),
    "divergences": ("chain", "divergence"),
}
# The key that stands for a tensor inside of a dictionary or list of the data.
_TENSOR = "<tensor>"


def save(
    posterior: Posterior,
    path: Path,
    *,
    overwrite: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Write a posterior as `Posterior.save` describes: the folder is complete or not there.

    Args:
        posterior: The posterior.
        path: The folder.
        overwrite: Replace a posterior that was saved there before.
        identity: What the run depended on, for `fit(resume=True)`.
    """
    path = Path(path)
    in_use = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if in_use and not (overwrite and (path / _MANIFEST).is_file()):
        remedy = "Choose another folder, or remove it."
        if (path / _MANIFEST).is_file():
            remedy = "Choose another folder, or pass overwrite=True to replace the posterior in it."
        msg = f"cannot save to {path}: it exists. {remedy}"
        raise FileExistsError(msg)
    with _new_folder(path) as folder:
        _write_parts(posterior, folder)
        counts = _write_draws(posterior, folder)
        _write_manifest(posterior, folder, identity=identity, counts=counts)
    return path


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Give a scratch folder that takes its place when it is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        msg = f"cannot save to {path}: {error.strerror or error}. Choose a folder you can write to."
        raise type(error)(msg) from error
    try:
        scratch.chmod(0o755)
        yield scratch
        if path.exists():
            # Set aside first: there is never a folder of which a part is gone already.
            aside = scratch.with_name(f"{scratch.name}.old")
            os.replace(path, aside)
            os.replace(scratch, path)
            shutil.rmtree(aside)
        else:
            os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


class Run:
    """The folder of a run that is in progress: its draws, and where its chains are.

    Whenever it is killed, the folder can be loaded, with the draws up to its last checkpoint.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = Archive(path / _DRAWS)

    @classmethod
    def create(
        cls,
        path: Path,
        posterior: Posterior,
        identity: Mapping[str, Any] | None,
        groups: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> Run:
        """Make the folder of a new run.

        Args:
            path: The folder, not there yet, or empty.
            posterior: What is known of the posterior: all but draws.
            identity: What the run depends on.
            groups: By group and site, tensors of the types and shapes of all draws, in which
                nothing need be.
        """
        with _new_folder(path) as folder:
            _write_parts(posterior, folder)
            archive = Archive(folder / _DRAWS)
            for group, sites in groups.items():
                archive.create(group, sites, posterior.dims, _AXES[group])
            _write_manifest(posterior, folder, identity=identity)
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, draws: int | None = None) -> Run:
        """Open the folder of a run that is to go on, up to so many draws of each chain.

        Args:
            path: The folder.
            draws: Number of draws of each chain; None: of a run that makes none as it goes.
        """
        run = cls(path)
        manifest = _read_manifest(path)
        # From now on the folder is that of a run in progress, whatever becomes of this one.
        manifest["counts"] = None
        manifest["files"] = {n: d for n, d in manifest["files"].items() if n in (_WEIGHTS, _DATA)}
        if draws is not None:
            if manifest["identity"] is not None:
                manifest["identity"]["option"]["draws"] = draws
            manifest["provenance"]["options"]["draws"] = draws
        _replace(path / _MANIFEST, _json(manifest))
        if draws is None:
            return run
        for group in ("posterior", "sample_stats"):
            run._archive.grow(group, draws)
        return run

    def write(self, group: str, chain: int, start: int, values: Mapping[str, torch.Tensor]) -> None:
        """Write draws of a chain; see `Archive.write`."""
        self._archive.write(group, chain, start, values)

    def save_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Keep where the run is, in one step, after its draws; the state before it is kept too."""
        if (self.path / _STATE).is_file():
            os.replace(self.path / _STATE, self.path / _EARLIER_STATE)
        _write_state(self.path, state)

    def complete(self, chains: range) -> None:
        """Do nothing: what other ranks have written in the folder can be read there."""

    def read(self, group: str, counts: Sequence[int]) -> StoredDraws:
        """Return what was written of a group, to be read from disk."""
        return StoredDraws(self.path / _DRAWS, group, counts)

    def joined(self, group: str, counts: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return all that each chain has of a group, one chain after the other."""
        draws = self.read(group, counts)
        return {site: draws.joined(site) for site in draws}


def finish(posterior: Posterior) -> None:
    """Write what is known of a posterior only now that its draws are in its folder.

    Args:
        posterior: The posterior, of draws that are in a folder.
    """
    draws, statistics = posterior.draws, posterior.sample_stats
    assert isinstance(draws, StoredDraws)
    assert isinstance(statistics, StoredDraws)
    assert posterior.divergence_chain is not None
    folder = draws.path.parent
    divergent = torch.bincount(posterior.divergence_chain, minlength=posterior.num_chains)
    counts = {
        "posterior": draws.counts,
        "sample_stats": statistics.counts,
        "divergences": divergent.tolist(),
    }
    identity = identity_in(folder)
    _write_manifest(
        posterior, folder, identity=identity, counts=None if posterior.interrupted else counts
    )


def load(path: str | Path, pair: Any = None) -> Posterior:
    """Read a posterior that was written by `Posterior.save` or `fit(out=...)`.

    Draws stay on disk until they are asked for. A run that was killed is loaded with the draws that
    every chain had at its last checkpoint.

    Args:
        path: The folder.
        pair: The pair that was fitted, or one with the same parameters; a copy of it receives the
            saved parameters. A built-in pair needs none. Without it the posterior has its draws,
            but cannot predict.

    Returns:
        The posterior.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        LoadError: If it is truncated, was changed, is of another version, holds no draws yet, or
            the pair given does not fit it.
    """
    path = Path(path)
    posterior = read(path, pair)
    in_progress = _read_manifest(path)["counts"] is None
    if posterior is None or (in_progress and posterior.num_draws == 0):
        msg = f"the run in {path} has no draws yet: it was stopped before the first. {RESUME}"
        raise LoadError(msg)
    return posterior


def read(path: Path, pair: Any = None) -> Posterior | None:
    """Read a posterior as `load` does, also one without draws; None before a first checkpoint."""
    manifest = _read_manifest(path)
    counts = manifest["counts"]
    state = _read_tensors(path / _STATE) if counts is not None else _last_state(path)
    provenance = manifest["provenance"]
    if counts is None:
        if "written" not in state:
            return None
        # Stopped: the manifest is older than the checkpoint.
        counts = {
            "posterior": state["written"].tolist(),
            "sample_stats": state["written"].tolist(),
            "divergences": state["divergences_written"].tolist(),
        }
        provenance["seconds"] = float(state["seconds"])
        provenance["gradient_evaluations"] = int(state["evaluations"].sum())
    groups = {g: StoredDraws(path / _DRAWS, g, n) for g, n in counts.items()}
    weights = _read_tensors(path / _WEIGHTS)
    data = None
    if manifest["data"] is not None:
        tensors = _read_tensors(path / _DATA)
        data = {n: _give_tensors(v, tensors) for n, v in manifest["data"]["other"].items()}
        data |= tensors
    guide = None
    if manifest["guide"] is not None:
        guide = rebuild(manifest["guide"], GUIDES)
        _fill(guide, weights, "guide.", path)
    divergences = groups["divergences"]
    return Posterior(
        draws=groups["posterior"],
        latents=tuple(manifest["latents"]),
        observed=tuple(manifest["observed"]),
        pair=_pair(manifest["pair"], pair, weights, data, path),
        data=data,
        dims={name: tuple(dims) for name, dims in manifest["dims"].items()},
        coords=manifest["coords"],
        sample_stats=groups["sample_stats"],
        is_mcmc=manifest["is_mcmc"],
        guide=guide,
        history=state.pop(_HISTORY, None),
        elbo=None if manifest["elbo"] is None else tuple(manifest["elbo"]),
        local_plate=manifest["local_plate"],
        interrupted=manifest["interrupted"] or manifest["counts"] is None,
        provenance=provenance,
        divergences={site: divergences.joined(site) for site in divergences},
        divergence_chain=chains_of(counts["divergences"]) if divergences else None,
        warnings=tuple(manifest["warnings"]),
        checkpoint=state,
    )


def _last_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the last checkpoint of a run in progress that can be read.

    Raises:
        LoadError: If none can.
    """
    try:
        return _read_tensors(path / _STATE)
    except LoadError as error:
        if not (path / _EARLIER_STATE).is_file():
            raise
        state = _read_tensors(path / _EARLIER_STATE)
        if (path / _STATE).is_file():  # else it was killed between two checkpoints
            warnings.warn(
                f"{error}. The checkpoint before it is used.", RuntimeWarning, stacklevel=4
            )
        return state


def identity_in(path: Path) -> dict[str, dict[str, Any]] | None:
    """Return what the run in a folder depends on, as far as it was written down.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        LoadError: If it is damaged.
    """
    identity: dict[str, dict[str, Any]] | None = _read_manifest(path)["identity"]
    return identity


def chains_of(counts: Sequence[int]) -> torch.Tensor:
    """Return the chain of each of the rows that chains have so many of."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def _write_parts(posterior: Posterior, folder: Path) -> None:
    """Write the weights and the data."""
    from safetensors.torch import save_file

    weights: dict[str, torch.Tensor] = {}
    for prefix, module in (("pair.", posterior.pair), ("guide.", posterior.guide)):
        if module is not None:
            weights |= {f"{prefix}{name}": value for name, value in module.state_dict().items()}
    # safetensors refuses tensors that share memory, as the weights of a tied layer do.
    save_file(
        {n: v.detach().cpu().contiguous().clone() for n, v in weights.items()}, folder / _WEIGHTS
    )
    _, tensors = _split_data(posterior)
    if tensors is not None:
        save_file({n: v.cpu().contiguous().clone() for n, v in tensors.items()}, folder / _DATA)
    history = {} if posterior.history is None else {_HISTORY: posterior.history}
    _write_state(folder, {**posterior.checkpoint, **history})
    for file in folder.iterdir():
        file.chmod(0o644)


def _split_data(
    posterior: Posterior,
) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor] | None]:
    """Return the data that are no tensors, with the places of those that are, and the tensors."""
    if posterior.data is None or posterior.local_plate is not None:
        return None, None
    tensors: dict[str, torch.Tensor] = {}
    other = {n: _take_tensors(v, n, tensors) for n, v in posterior.data.items()}
    return {n: v for n, v in other.items() if n not in tensors}, tensors


def _write_draws(posterior: Posterior, folder: Path) -> dict[str, list[int]]:
    """Write draws, statistics and divergences; return the number of each chain's."""
    archive = Archive(folder / _DRAWS)
    counts = {}
    for group in ("posterior", "sample_stats"):
        sites = posterior.draws if group == "posterior" else posterior.sample_stats
        archive.create(group, sites, posterior.dims, _AXES[group])
        for site, value in sites.items():
            for number, draws in enumerate(value):
                archive.write(group, number, 0, {site: draws})
        counts[group] = [posterior.num_draws] * posterior.num_chains
    places = []
    if posterior.divergence_chain is not None:
        places = [posterior.divergence_chain == c for c in range(posterior.num_chains)]
    counts["divergences"] = [int(place.sum()) for place in places]
    most = max(counts["divergences"], default=0)
    padded = {
        site: value.new_empty(len(places), most, *value.shape[1:])
        for site, value in posterior.divergences.items()
    }
    archive.create("divergences", padded, posterior.dims, _AXES["divergences"])
    for number, place in enumerate(places):
        rows = {site: value[place] for site, value in posterior.divergences.items()}
        archive.write("divergences", number, 0, rows)
    return counts


def _write_state(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    _replace(folder / _STATE, save({n: v.detach().cpu().contiguous() for n, v in state.items()}))


def _write_manifest(
    posterior: Posterior,
    folder: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    counts: Mapping[str, Sequence[int]] | None = None,
) -> None:
    files = [folder / name for name in (_WEIGHTS, _DATA) if (folder / name).is_file()]
    if counts is not None:  # of a run in progress these still change
        files += [folder / _STATE, *sorted((folder / _DRAWS).rglob("zarr.json"))]
    other, _ = _split_data(posterior)
    manifest = {
        "format": FORMAT,
        "pair": None if posterior.pair is None else describe(posterior.pair, PAIRS),
        "guide": None if posterior.guide is None else describe(posterior.guide, GUIDES),
        "latents": list(posterior.latents),
        "observed": list(posterior.observed),
        "dims": {name: list(dims) for name, dims in posterior.dims.items()},
        "coords": dict(posterior.coords),
        "is_mcmc": posterior.is_mcmc,
        "elbo": posterior.elbo,
        "local_plate": posterior.local_plate,
        "interrupted": posterior.interrupted,
        "warnings": posterior.warnings,
        "provenance": dict(posterior.provenance),
        "identity": identity,
        "counts": counts,
        "data": None if other is None else {"other": _jsonable(other)},
        "files": {file.relative_to(folder).as_posix(): _digest(file) for file in files},
    }
    _replace(folder / _MANIFEST, _json(manifest))


def _json(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: it is what it was or what it is to be, whatever happens."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


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
        target = path / name
        if not target.is_file() or _digest(target) != digest:
            what = "was changed or truncated" if target.is_file() else "is missing"
            msg = f"the posterior in {path} is damaged: {name} {what}. Restore it, or fit again."
            raise LoadError(msg)
    assert isinstance(manifest, dict)
    return manifest


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        # A run in progress replaces its state, and may do so while a file is being opened.
        changing = path.name in (_STATE, _EARLIER_STATE)
        return load(path.read_bytes()) if changing else dict(load_file(path))
    except (SafetensorError, OSError) as error:
        msg = f"the posterior in {path.parent} is damaged: {path.name}: {error}"
        raise LoadError(msg) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        _check_parts(described, pair, path)
    elif is_whole(described):
        pair = rebuild(described, PAIRS)
    else:
        return None
    state = _under("pair.", weights)
    if data is not None and pair.state_dict().keys() ^ state.keys():
        _run_once(pair, data)
    adopt_params(pair, state)
    _fill(pair, weights, "pair.", path)
    return pair.eval()  # as a fit leaves it


def _check_parts(described: Mapping[str, Any], pair: nn.Module, path: Path) -> None:
    """Refuse a pair whose networks are others: their parameters may well have the same shapes."""
    found = differences_of_parts(described, describe(pair, PAIRS))
    if found and described["config"] is not None:
        wrong = "; ".join(f"{name} {words}" for name, words in found.items())
        msg = (
            f"the {type(pair).__name__} given does not fit the one in {path}: {wrong}. "
            "Give one like it, or none: then it is made as the folder says."
        )
        raise LoadError(msg)


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
