"""Fitting a pair: the one call that every method is run by."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppl_gen.core.archive import StoredDraws
from ppl_gen.core.arguments import bind
from ppl_gen.core.errors import NonFiniteLossError, check_count, did_you_mean
from ppl_gen.core.identity import differences, identity_of, options_of, other_versions
from ppl_gen.core.lock import only_writer
from ppl_gen.core.method import Method, Problem
from ppl_gen.core.pair import as_pair, cast, own_copy
from ppl_gen.core.posterior import Posterior, assemble
from ppl_gen.core.scope import isolated
from ppl_gen.core.store import finish, identity_in, read, save

__all__ = ["extend", "fit"]


def fit(
    pair: Any,
    data: Mapping[str, Any],
    method: Method,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
    out: str | Path | None = None,
    resume: bool = False,
) -> Posterior:
    """Fit a pair to data by an inference method.

    The pair is not changed: `posterior.pair` is a trained copy. Nor is anything global: the
    generators, default dtype, validation setting and parameter store are as they were.

    Args:
        pair: A pair, a Pyro model, or a tuple (model, guide).
        data: Data by the names of the model's arguments: tensors, arrays, or any other value.
        method: The method with its options, such as `SVI()` or `NUTS()`.
        seed: Seed; the same seed gives the same draws on the same machine.
        device: Where to run; "auto" takes a GPU where there is one.
        progress: Whether to show a progress bar.
        out: A folder for the posterior, as `Posterior.save` writes it. MCMC (but for engine "pyro")
            writes its draws there as it goes and keeps none in memory, so that `pg.load(out)` has
            them also of a run that was killed; they are read when they are asked for.
        resume: Go on with the run in the folder: killed, interrupted or finished, it ends with the
            very draws that it would have had. The number of draws may be larger than it was. Where
            there is nothing yet, the run starts.

    Returns:
        The posterior. After Ctrl-C, what was done so far, marked `interrupted`.

    Raises:
        ValueError: If the data do not fit the model, the model does not fit the method, or the run
            to resume was made with other data, parameters, options, or another model.
        FileExistsError: If there is something in the folder, and it is not to be resumed.
        BlockingIOError: If another process is writing to the folder.
        OSError: If the folder cannot be written to, or the disk is full; draws are kept there up to
            a few seconds before.
        NonFiniteLossError: If the objective became NaN or infinite; it carries the posterior of
            the last good state.

    Example:
        >>> import torch
        >>> from ppl_gen.inference import SVI
        >>> from ppl_gen.models import BayesianLinearRegression
        >>> x = torch.linspace(-1.0, 1.0, 20).unsqueeze(-1)
        >>> pair = BayesianLinearRegression(num_features=1)
        >>> posterior = fit(pair, {"x": x, "y": 2 * x[:, 0]}, SVI(steps=5), progress=False)
        >>> posterior["weights"].shape
        torch.Size([1, 1000, 1])
    """
    source = as_pair(pair)
    if not dataclasses.is_dataclass(method) or isinstance(method, type):
        raise _no_method(method)
    if not 0 <= seed < 2**32:
        msg = f"seed: expected a whole number from 0 to 2**32 - 1, got {seed}."
        raise ValueError(msg)
    target = _device(device)
    bound = bind(source, data)
    problem = Problem(
        own_copy(source), bound, target, seed, progress, facts=_facts(method, seed, target)
    )
    if out is None:
        return _run(method, problem)
    with only_writer(Path(out)):
        problem = _in_folder(Path(out), problem, method, resume)
        if problem.previous is not None and not problem.previous.checkpoint:
            return problem.previous
        return _run(method, problem)


def extend(posterior: Posterior, draws: int, progress: bool) -> Posterior:
    """Go on with the chains of a posterior, as `Posterior.extend` describes."""
    check_count("draws", draws)
    method, seed = posterior.provenance.get("method"), posterior.provenance.get("seed", 0)
    if not posterior.checkpoint:
        if not posterior.is_mcmc:
            remedy = "Draw from its guide: posterior.sample(draws=...)."
        elif posterior.interrupted:
            remedy = "It was interrupted: fit again, with out=... to be able to go on."
        else:
            remedy = "Its engine keeps no state to go on from: fit again with more draws."
        msg = f"a posterior by {method} cannot be extended here. {remedy}"
        raise ValueError(msg)
    pair, data = posterior._run_on(None)
    options = dict(posterior.provenance["options"])
    rebuilt = getattr(_methods(), str(method))(
        **options
        | {
            "draws": posterior.num_draws + draws,
            "dtype": posterior._dtype,
            "init": "uniform",  # long past
        }
    )
    target = _device("auto" if posterior.provenance["device"] != "cpu" else "cpu")
    facts = {**posterior.provenance, "options": options | {"draws": rebuilt.draws}}
    problem = Problem(
        own_copy(pair),
        data,
        target,
        seed,
        progress,
        previous=posterior,
        prepared=True,
        facts=facts,
    )
    if not isinstance(posterior.draws, StoredDraws):
        return _run(rebuilt, problem)
    with only_writer(posterior.draws.path.parent):
        return _run(rebuilt, problem)


def _run(method: Method, problem: Problem) -> Posterior:
    target, previous = problem.device, problem.previous
    if previous is not None and previous.num_draws < getattr(method, "draws", 0):
        _warn_of_other_versions(previous)
    # On a GPU, what the model makes by torch.zeros(3) has to be there as well.
    on_target = target if target.type != "cpu" else contextlib.nullcontext()
    with isolated(problem.seed), on_target:
        work = cast(problem.pair, None, target)
        result = method.run(problem)
    if previous is not None and result.draws is previous.draws:
        return previous
    seconds = time.perf_counter() - problem.started
    if previous is not None:
        seconds += previous.provenance["seconds"]
    cpu = torch.device("cpu")
    cast(work, None, cpu)
    posterior = Posterior(
        draws=result.draws,
        latents=tuple(result.draws) if result.latents is None else result.latents,
        pair=work,
        data=problem.data if result.data is None else result.data,
        sample_stats=_on_cpu(result.sample_stats),
        is_mcmc=method.is_mcmc,
        guide=None if result.guide is None else result.guide.to(cpu),
        history=result.history,
        elbo=result.elbo,
        local_plate=result.local_plate,
        interrupted=result.interrupted,
        provenance={
            **problem.facts,
            "dtype": str(result.dtype).removeprefix("torch."),
            **result.facts,
            "seconds": seconds,
            "gradient_evaluations": result.gradient_evaluations,
        },
        divergences=result.divergences,
        divergence_chain=result.divergence_chain,
        warnings=result.warnings,
        checkpoint=result.checkpoint,
    )
    with isolated(problem.seed, result.dtype):
        posterior = assemble(posterior)
    if result.failure is not None:
        raise NonFiniteLossError(result.failure, posterior)
    if isinstance(posterior.draws, StoredDraws):
        finish(posterior)
    elif problem.out is not None:
        # What the folder holds of the run so far is in memory by now.
        save(posterior, problem.out, overwrite=previous is not None, identity=problem.identity)
    if problem.progress:
        for warning in posterior.warnings:
            print(warning, file=sys.stderr)
    return posterior


def _on_cpu(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    if isinstance(values, StoredDraws):
        return values
    return {name: value.cpu() for name, value in values.items()}


def _in_folder(out: Path, problem: Problem, method: Method, resume: bool) -> Problem:
    """Return the problem of a run that is written to a folder, and perhaps is there already.

    Raises:
        FileExistsError: If the folder is taken.
        ValueError: If the run there is another one.
    """
    identity = identity_of(problem.pair, problem.data, method, problem.seed)
    problem = dataclasses.replace(problem, out=out, identity=identity)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return problem
    try:
        before = identity_in(out)
    except FileNotFoundError as error:
        msg = f"out: {out} exists and is no run. Choose another folder, or remove it."
        raise FileExistsError(msg) from error
    if not resume:
        msg = (
            f"out: {out} holds a run. Pass resume=True to go on with it, or choose another folder."
        )
        raise FileExistsError(msg)
    if before is None:
        msg = (
            f"out: {out} was written by posterior.save(), which keeps no record of what the run "
            "depended on. Load it, and extend it: pg.load(out).extend(draws)."
        )
        raise ValueError(msg)
    _check_identity(before, identity, method, out)
    previous = read(out, problem.pair)
    if previous is None:  # it was killed before its first checkpoint
        shutil.rmtree(out)
    elif previous.interrupted and not previous.checkpoint:
        msg = (
            f"out: {out} holds a run that was interrupted, and {type(method).__name__} has kept "
            "nothing to go on from. Choose another folder for a new run; pg.load(out) reads the "
            "draws of this one."
        )
        raise ValueError(msg)
    return dataclasses.replace(problem, previous=previous)


def _check_identity(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    method: Method,
    out: Path,
) -> None:
    """Refuse to go on with a run that is another one; it may have more draws, though."""
    old, new = before["option"].get("draws"), after["option"].get("draws")
    can_grow = method.is_mcmc and after["option"].get("engine") != "pyro"
    if can_grow and old is not None and new is not None and new > old:
        after = {**after, "option": {**after["option"], "draws": old}}
    found = differences(before, after)
    if found:
        msg = (
            f"out: {out} holds another run:\n  "
            + "\n  ".join(found)
            + "\nGive what it was started with, or choose another folder for a new run. "
            "The number of draws may grow."
        )
        raise ValueError(msg)


def _no_method(given: object) -> TypeError:
    """Return the error for what is no method, with the near ones where it is a name."""
    names = [name for name in _methods().__all__ if hasattr(getattr(_methods(), name), "run")]
    short = given.__name__ if isinstance(given, type) else str(given)
    # Names come in any case: "nuts" is near "NUTS".
    near = ""
    if isinstance(given, type) and short in names:
        near = f" Write {short}() in place of {short}."
    elif isinstance(given, str):
        near = did_you_mean(short.upper(), names)
    return TypeError(
        f"method: expected an inference method, such as SVI() or NUTS(), got {given!r}. There are "
        f"{', '.join(names)} in ppl_gen.inference.{near}"
    )


def _methods() -> Any:
    return importlib.import_module("ppl_gen.inference")


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        msg = f"device {str(device)!r} cannot be used: {error}. Give 'auto', 'cpu' or 'cuda'."
        raise ValueError(msg) from error
    return target


def _facts(method: Method, seed: int, device: torch.device) -> dict[str, Any]:
    """Return what is known for the provenance before a run."""
    return {
        "method": type(method).__name__,
        "options": options_of(method),
        "seed": seed,
        "versions": _versions(),
        "device": str(device),
    }


def _versions() -> dict[str, str]:
    packages = ("ppl-gen", "torch", "pyro-ppl", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def _warn_of_other_versions(previous: Posterior) -> None:
    changed = other_versions(previous.provenance.get("versions", {}), _versions())
    if changed:
        warnings.warn(
            f"the run was made with {changed}: the draws to come are as good, but may differ in "
            "their last bits, and then altogether, from those that it would have had.",
            RuntimeWarning,
            stacklevel=4,
        )
