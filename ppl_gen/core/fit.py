"""Fitting a pair: the one call that every method is run by."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppl_gen.core.archive import StoredDraws
from ppl_gen.core.errors import NonFiniteLossError, check_count, did_you_mean
from ppl_gen.core.identity import differences, identity_of, options_of, other_versions
from ppl_gen.core.loader import Data, bind_data
from ppl_gen.core.lock import only_writer
from ppl_gen.core.method import Method, Problem
from ppl_gen.core.pair import as_pair, cast, own_copy
from ppl_gen.core.posterior import Posterior, assemble
from ppl_gen.core.ranks import ranks
from ppl_gen.core.scope import isolated
from ppl_gen.core.store import finish, identity_in, read, save

__all__ = ["extend", "fit"]


def fit(
    pair: Any,
    data: Data,
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

    Under `torchrun` the processes work together: chains are spread over them, and each takes its
    share of every mini-batch. All return the same posterior; the first prints and writes.

    Args:
        pair: A pair, a Pyro model, or a tuple (model, guide).
        data: Data by the names of the model's arguments: tensors, arrays, or any other value. To
            SVI also a loader of mini-batches: a `torch.utils.data.DataLoader`, or another object
            that can be iterated over for each epoch; see `Batches`.
        method: The method with its options, such as `SVI()` or `NUTS()`.
        seed: Seed; the same seed gives the same draws on the same machine.
        device: Where to run; "auto" takes a GPU where there is one.
        progress: Whether to show a progress bar.
        out: A folder for the posterior, as `Posterior.save` writes it. MCMC (but for engine "pyro")
            writes its draws there as it goes and keeps none in memory, so that `pg.load(out)` has
            them also of a run that was killed; they are read when they are asked for. SVI by steps
            writes a checkpoint every few seconds.
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
        RankError: If another process of the run has died, failed or got stuck, with its number.

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
    with ranks().run(_remedy(out)):
        return _fit(pair, data, method, seed, device, progress, out, resume)


def _fit(
    pair: Any,
    data: Data,
    method: Method,
    seed: int,
    device: str | torch.device,
    progress: bool,
    out: str | Path | None,
    resume: bool,
) -> Posterior:
    progress = progress and ranks().first  # which speaks for all
    source = as_pair(pair)
    if not dataclasses.is_dataclass(method) or isinstance(method, type):
        raise _no_method(method)
    if not 0 <= seed < 2**32:
        msg = f"seed: expected a whole number from 0 to 2**32 - 1, got {seed}."
        raise ValueError(msg)
    target = _device(device)
    bound, loader = bind_data(source, data, seed, progress=progress)
    if loader is not None and not getattr(method, "takes_batches", False):
        raise _needs_all_data(type(method).__name__)
    problem = Problem(
        own_copy(source),
        bound,
        target,
        seed,
        progress,
        loader=loader,
        facts=_facts(method, seed, target),
    )
    _agree(problem, method)
    if out is None:
        return _run(method, problem)
    with _only_writer(Path(out)):
        problem = _in_folder(Path(out), problem, method, resume)
        ranks().barrier()  # before anyone writes there
        if problem.previous is not None and not problem.previous.checkpoint:
            return problem.previous
        return _run(method, problem)


def _remedy(out: str | Path | None) -> str:
    """Return what to do when a process has ended the run of all."""
    if out is None:
        return "Start them again; a run with out=... can be gone on with, by resume=True."
    return f"Start them again with resume=True: what was done up to a few seconds ago is in {out}."


def _agree(problem: Problem, method: Method) -> None:
    """Make sure that all processes fit the same, with the parameters of the first one.

    Raises:
        ValueError: If they do not.
    """
    here = ranks()
    if here.size == 1:
        return
    own = identity_of(problem.pair, problem.data, method, problem.seed, problem.loader)
    # Networks may have been made with other random weights.
    own["parameter"] = {n: text.split(" with ")[0] for n, text in own["parameter"].items()}
    found = differences(here.from_first(own), own)
    if found:
        msg = (
            f"process {here.index} is to fit something else than process 0:\n  "
            + "\n  ".join(found)
            + "\nGive all of them the same: they share the work out among themselves. Data "
            "that are simulated need a seed."
        )
        raise ValueError(msg)
    here.broadcast_(list(problem.pair.state_dict().values()))


def _only_writer(out: Path) -> AbstractContextManager[None]:
    """Return the lock of a folder, which the first process holds for all."""
    return only_writer(out) if ranks().first else contextlib.nullcontext()


def extend(posterior: Posterior, draws: int, progress: bool) -> Posterior:
    """Go on with the chains of a posterior, as `Posterior.extend` describes."""
    check_count("draws", draws)
    method, seed = posterior.provenance.get("method"), posterior.provenance.get("seed", 0)
    if not posterior.checkpoint or not posterior.is_mcmc:
        if posterior.is_point:
            remedy = (
                "It is one point, to which no draws can be added. For a distribution take NUTS(), "
                'or SVI(guide="full_rank").'
            )
        elif not posterior.is_mcmc:
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
        progress and ranks().first,
        previous=posterior,
        prepared=True,
        facts=facts,
    )
    if not isinstance(posterior.draws, StoredDraws):
        with ranks().run(_remedy(None)):
            return _run(rebuilt, problem)
    folder = posterior.draws.path.parent
    with ranks().run(_remedy(folder)), _only_writer(folder):
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
    facts = {
        **problem.facts,
        "dtype": str(result.dtype).removeprefix("torch."),
        **result.facts,
        "seconds": seconds,
        "gradient_evaluations": result.gradient_evaluations,
    }
    if ranks().size > 1:
        facts["processes"] = ranks().size
    cpu = torch.device("cpu")
    cast(work, None, cpu).eval()  # networks may be random in training, as by dropout
    posterior = Posterior(
        draws=result.draws,
        latents=tuple(result.draws) if result.latents is None else result.latents,
        pair=work,
        data=None if problem.loader else problem.data if result.data is None else result.data,
        sample_stats=_on_cpu(result.sample_stats),
        is_mcmc=method.is_mcmc,
        guide=None if result.guide is None else result.guide.to(cpu),
        history=result.history,
        elbo=result.elbo,
        local_plate=result.local_plate,
        interrupted=result.interrupted,
        provenance=ranks().from_first(facts),
        divergences=result.divergences,
        divergence_chain=result.divergence_chain,
        warnings=result.warnings,
        checkpoint=result.checkpoint,
    )
    try:
        with isolated(problem.seed, result.dtype):
            posterior = assemble(posterior, result.few)
    except ValueError as error:
        if result.failure is None:
            raise
        # What broke the loss breaks the model as well, and is what to know.
        raise NonFiniteLossError(result.failure) from error
    if result.failure is not None:
        raise NonFiniteLossError(result.failure, posterior)
    if not ranks().first:
        ranks().barrier()
        return posterior
    if isinstance(posterior.draws, StoredDraws):
        finish(posterior)
    elif problem.out is not None:
        # What the folder holds of the run so far is in memory by now.
        save(posterior, problem.out, overwrite=True, identity=problem.identity)
    ranks().barrier()  # the folder is complete
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
    identity = identity_of(problem.pair, problem.data, method, problem.seed, problem.loader)
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
        ranks().barrier()  # all have looked
        if ranks().first:
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
            + "\nGive what it was started with, or choose another folder for a new run."
            + " The number of draws may grow." * can_grow
        )
        raise ValueError(msg)


def _needs_all_data(method: str) -> ValueError:
    return ValueError(
        f"{method} needs all of the data at once, and a loader gives mini-batches. Give tensors, "
        'as in pg.fit(pair, {"x": x}, ...), or take SVI(guide="pair", epochs=10).'
    )


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
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = ranks().own_device(torch.device(device))
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
        "versions": dict(_versions()),
        "device": str(device),
    }


@functools.cache
def _versions() -> Mapping[str, str]:
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
