"""Fitting a pair: the one call that every method is run by."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from ppl_gen.core.arguments import bind
from ppl_gen.core.errors import NonFiniteLossError, did_you_mean
from ppl_gen.core.method import Method, Problem, Result
from ppl_gen.core.pair import as_pair, cast, own_copy
from ppl_gen.core.posterior import Posterior, assemble
from ppl_gen.core.scope import isolated

__all__ = ["fit"]


def fit(
    pair: Any,
    data: Mapping[str, Any],
    method: Method,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
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

    Returns:
        The posterior. After Ctrl-C, what was done so far, marked `interrupted`.

    Raises:
        ValueError: If the data do not fit the model, or the model does not fit the method.
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
    started = time.perf_counter()
    # On a GPU, what the model makes by torch.zeros(3) has to be there as well.
    on_target = target if target.type != "cpu" else contextlib.nullcontext()
    with isolated(seed), on_target:
        work = cast(own_copy(source), None, target)
        result = method.run(Problem(work, bound, target, seed, progress))
    seconds = time.perf_counter() - started
    cpu = torch.device("cpu")
    cast(work, None, cpu)
    posterior = Posterior(
        draws=result.draws,
        latents=tuple(result.draws),
        pair=work,
        data=bound if result.data is None else result.data,
        sample_stats={name: value.cpu() for name, value in result.sample_stats.items()},
        is_mcmc=method.is_mcmc,
        guide=None if result.guide is None else result.guide.to(cpu),
        history=result.history,
        elbo=result.elbo,
        local_plate=result.local_plate,
        interrupted=result.interrupted,
        provenance=_provenance(method, seed, target, seconds, result),
    )
    with isolated(seed, result.dtype):
        posterior = assemble(posterior)
    if result.failure is not None:
        raise NonFiniteLossError(result.failure, posterior)
    return posterior


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


def _provenance(
    method: Method, seed: int, device: torch.device, seconds: float, result: Result
) -> dict[str, Any]:
    options = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    plain = (bool, int, float, str, type(None))
    return {
        "method": type(method).__name__,
        "options": {n: v if isinstance(v, plain) else str(v) for n, v in options.items()},
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "pyro-ppl", "numpy")},
        },
        "dtype": str(result.dtype).removeprefix("torch."),
        "device": str(device),
        "seconds": seconds,
        "gradient_evaluations": result.gradient_evaluations,
    }
