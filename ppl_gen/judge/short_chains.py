"""Short Markov chains from an approximation: how far they move shows how wrong it is at least."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core import LogDensity, Posterior
from ppl_gen.core.arguments import num_bytes
from ppl_gen.core.evaluation import Evaluate, evaluation
from ppl_gen.core.progress import announced
from ppl_gen.core.scope import isolated
from ppl_gen.core.weighing import in_double
from ppl_gen.diagnostics.two_samples import Distance
from ppl_gen.judge.findings import Thresholds
from ppl_gen.judge.sites import scalar_name, worth_of_a_draw
from ppl_gen.judge.stein import stein_of
from ppl_gen.judge.wording import number, percent

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ShortChains", "short_chains"]

Array: TypeAlias = NDArray[np.float64]

_MOST_CHAINS = 1024
_LEAST_CHAINS = 64
# The metric is estimated anew from where the chains are, so many times.
_STAGES = 6
_MOST_LEAPS = 16
_TARGET_ACCEPT = 0.8
# Steps are scaled by these in turn, so that chains in narrow places get on as well.
_SHRINK = (1.0, 1.0, 0.5, 1.0, 0.1, 1.0, 1.0, 0.5, 1.0, 1.0)
# Beyond so many coordinates, or with fewer chains for each, the metric is diagonal.
_DENSE_UP_TO = 100
_CHAINS_PER_COORDINATE = 5
# Coordinates of all chains together: a second or two. The compiled density goes through the data a
# hundred times as fast as PyTorch moves points.
_WORK = 4 * 10**5
_DATA_PER_COORDINATE = 100
# Share of starts and ends in either tail that are taken for the quantile there.
_CLIPPED = 0.005
# How often all bounds together may be above the errors that they are of.
_FALSE_ALARM = 0.05
# Wang, Kasprzak and Huggins (2023): chains have mixed where starts and ends correlate less.
_MIXED = 0.1


@dataclass(frozen=True, eq=False)
class ShortChains:
    """How far short chains have moved from the approximation that they started from.

    Errors are those of the approximation, as measured against where the chains ended. Chains move
    towards the posterior, so that the true errors are as large at least, and larger where the
    chains have not mixed. A bound is what is left of an error less its chance part, all bounds
    holding together with 95 % confidence. In either tail the last half per cent of starts and ends
    counts as the quantile there: moments that a heavy tail alone decides, or that do not exist, are
    not judged.

    Args:
        parameters: Names of the scalars of the latent sites, as `theta[3]`.
        mean_errors: Error of each mean, in standard deviations, (parameter,): positive where the
            approximation's is too high.
        mean_bounds: Lower bounds of their sizes, (parameter,); 0 where chance may explain them.
        sd_errors: Relative error of each standard deviation, (parameter,): -0.2 where the
            approximation's is 20 % too small.
        sd_bounds: Lower bounds of their sizes, (parameter,).
        correlations: Rank correlation of each scalar's starts and ends, (parameter,).
        resolution: Error of a mean, and of a standard deviation, that would have shown in every
            scalar.
        chains: Number of chains.
        transitions: Number of transitions of each.
        acceptance: Their mean acceptance over the last stage.
        stein: The squared kernel Stein discrepancy of the starts, which sees any error, its size
            not told; None where draws are not independent, or coordinates too many.
    """

    parameters: tuple[str, ...]
    mean_errors: Array
    mean_bounds: Array
    sd_errors: Array
    sd_bounds: Array
    correlations: Array
    resolution: tuple[float, float]
    chains: int
    transitions: int
    acceptance: float
    stein: Distance | None = None

    def worst(
        self,
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - it is frozen
    ) -> tuple[str, str, float, float]:
        """Return the largest bound: "mean" or "sd", the parameter, its error and the bound.

        Args:
            thresholds: What is red: means and standard deviations are compared in units of it.
        """
        reds = thresholds.mean_red, thresholds.sd_red
        sizes = np.stack([self.mean_bounds / reds[0], self.sd_bounds / reds[1]])
        errors = np.stack([self.mean_errors, self.sd_errors])
        kind, place = np.unravel_index(int(np.argmax(sizes)), sizes.shape)
        bound = (self.mean_bounds, self.sd_bounds)[kind][place]
        name = self.parameters[int(place)]
        return ("mean", "sd")[kind], name, float(errors[kind, place]), float(bound)

    @property
    def mixed(self) -> bool:
        """Whether the ends of the chains hardly depend on where they started."""
        return bool(self.correlations.max() < _MIXED + self._chance / math.sqrt(self.chains))

    @property
    def _chance(self) -> float:
        return _quantile(len(self.parameters))

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        kind, name, error, bound = self.worst()
        if bound > 0:
            return f"{_in_words(kind, name, error, bound)}, as {self.chains} short chains tell"
        if not self.mixed:
            place = int(self.correlations.argmax())
            return (
                f"{self.chains} short chains found no error, but {self.parameters[place]} still "
                f"depends on where they started (rank correlation {self.correlations[place]:.2f}): "
                "there may be one"
            )
        mean, sd = self.resolution
        return (
            f"{self.chains} short chains found no error: one of {number(mean)} sd in a mean, or of "
            f"{percent(sd)} in an sd, would have shown"
        )

    def table(self) -> pd.DataFrame:
        """Return a row for each parameter, the worst first.

        Columns: `parameter`, `mean_error`, `mean_bound`, `sd_error`, `sd_bound`, `correlation`.
        """
        import pandas as pd

        unit = Thresholds()
        table = pd.DataFrame(
            {
                "parameter": self.parameters,
                "mean_error": self.mean_errors,
                "mean_bound": self.mean_bounds,
                "sd_error": self.sd_errors,
                "sd_bound": self.sd_bounds,
                "correlation": self.correlations,
            }
        )
        size = np.maximum(self.mean_bounds / unit.mean_red, self.sd_bounds / unit.sd_red)
        return table.iloc[np.argsort(-size, kind="stable")].reset_index(drop=True)

    def __str__(self) -> str:
        """Return the sentence and the table of the worst parameters."""
        rows = self.table().head(10)
        return f"{self.sentence}.\n{rows.to_string(index=False, float_format='{:.3g}'.format)}"


def short_chains(posterior: Posterior, *, seed: int = 0, progress: bool = False) -> ShortChains:
    """Start many short Markov chains from an approximation's draws, and see how far they move.

    Chains of Hamiltonian Monte Carlo, one from each draw, up to 1,024 of them, side by side on the
    compiled log density; step size and metric are estimated from all of them together. No
    reference is needed. What they cannot see is what they do not reach in 60 transitions: another
    mode, or the far end of a long and narrow tail.

    Args:
        posterior: An approximation with its pair and data.
        seed: Seed of the chains.
        progress: Whether to say what is going on.

    Returns:
        Errors of means and standard deviations with their lower bounds, for each scalar of the
        latent sites, in the model's own units.

    Raises:
        ValueError: If the posterior is MCMC or one point, holds no data or not the draws that
            chains could start from, or the model has no log density.

    References:
        Wang, Kasprzak and Huggins (2023), A Targeted Accuracy Diagnostic for Variational
        Approximations, arXiv:2302.12419. Unlike there, the metric follows the chains, and bounds
        are from the paired differences of starts and ends, all of them together.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from ppl_gen import fit
        >>> from ppl_gen.inference import SVI
        >>> def model():
        ...     pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), torch.tensor(
        ...         [[1.0, 0.9], [0.9, 1.0]])))
        >>> posterior = fit(model, {}, SVI(guide="mean_field"), progress=False)
        >>> print(short_chains(posterior).sentence)
        the sd of x[...] is at least 5... % too small, as 1000 short chains tell
    """
    _check(posterior)
    wide = in_double(posterior)
    with isolated(seed, wide._dtype), announced("running short chains", enabled=progress):
        density = LogDensity(wide.pair, wide.data or {}, dtype=wide._dtype, prepared=True)
        with warnings.catch_warnings():
            # The fit has said so.
            warnings.filterwarnings("ignore", message="the model runs on the eager engine")
            evaluate = evaluation(density)
        start = _starts(wide, density)
        end, acceptance = _run(evaluate, start)
        values = density.constrain(torch.cat([start, end]))
    names, flat = _scalars(values)
    found = _compare(names, flat[: len(start)], flat[len(start) :], acceptance)
    if worth_of_a_draw(posterior) < 1.0:
        return found
    stein = stein_of(start.numpy(), evaluate(start)[1].numpy(), seed)
    return dataclasses.replace(found, stein=stein)


def _check(posterior: Posterior) -> None:
    """Refuse what chains cannot be started from."""
    method = posterior.provenance.get("method", "an unknown method")
    if posterior.is_mcmc:
        reason = f"the draws by {method} are Markov chains themselves: judge them by their R-hat"
    elif posterior.is_point:
        reason = f"a posterior by {method} that is one point has no spread to be compared"
    elif posterior.pair is None:
        reason = "it was loaded without its pair: pg.load(path, pair=pair) gives it one"
    elif posterior.data is None or posterior.local_plate is not None:
        reason = (
            "it was fitted to mini-batches and holds no data: give it some by "
            "posterior.sample(data)"
        )
    elif posterior.num_chains * posterior.num_draws < _LEAST_CHAINS:
        count = posterior.num_chains * posterior.num_draws
        reason = (
            f"it needs at least {_LEAST_CHAINS} draws to start from, and there are {count}: "
            "posterior.sample(draws=1000)"
        )
    else:
        return
    raise ValueError(f"no short chains from this posterior: {reason}.")


def _starts(posterior: Posterior, density: LogDensity) -> torch.Tensor:
    """Return draws of the approximation as unconstrained vectors, (chain, dim)."""
    missing = [name for name in density.sites if name not in posterior.draws]
    if missing:
        msg = (
            f"no short chains from this posterior: it has no draws of {', '.join(missing)}, which "
            "the model has. Judge a posterior of the whole model."
        )
        raise ValueError(msg)
    work = density.dim + num_bytes(density.data) // (8 * _DATA_PER_COORDINATE)
    most = min(_MOST_CHAINS, _WORK // work)
    draws = {name: posterior[name].flatten(0, 1) for name in density.sites}
    count = posterior.num_chains * posterior.num_draws
    chosen = torch.randperm(count)[: max(most, _LEAST_CHAINS)]
    vectors = density.unconstrain({name: value[chosen] for name, value in draws.items()})
    vectors = vectors.double()
    finite = torch.isfinite(vectors).all(dim=1)
    if int(finite.sum()) < _LEAST_CHAINS:
        msg = (
            f"no short chains from this posterior: {int((~finite).sum())} of {len(finite)} draws "
            "are NaN, infinite, or at the edge of their support. Fit it again."
        )
        raise ValueError(msg)
    return vectors[finite]


def _run(evaluate: Evaluate, start: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Run a chain from each start, (chain, dim); return where they end, and their acceptance."""
    points = start
    values, gradients = evaluate(points)
    step = 1.0 / start.shape[1] ** 0.25
    acceptance = 0.0
    for _ in range(_STAGES):
        factor = _factor(points)
        acceptance = 0.0
        for shrink in _SHRINK:
            path = math.pi / 2 * (0.5 + float(torch.rand(())))
            leaps = min(max(round(path / (shrink * step)), 1), _MOST_LEAPS)
            tried = _leapfrog(evaluate, points, gradients, factor, shrink * step, leaps)
            new_points, new_values, new_gradients, released = tried
            chance = (new_values - values + released).exp().clamp(max=1.0).nan_to_num(0.0)
            # What starts where the density is no number takes whatever is one.
            lost = ~torch.isfinite(values) & torch.isfinite(new_values)
            chance = torch.where(lost, 1.0, chance)
            taken = torch.rand(len(chance)) < chance
            points = torch.where(taken[:, None], new_points, points)
            gradients = torch.where(taken[:, None], new_gradients, gradients)
            values = torch.where(taken, new_values, values)
            acceptance += float(chance.mean()) / len(_SHRINK)
            if shrink == 1.0:
                step = min(step * math.exp(2 * (float(chance.mean()) - _TARGET_ACCEPT)), 2.0)
    return points, acceptance


def _leapfrog(
    evaluate: Evaluate,
    points: torch.Tensor,
    gradients: torch.Tensor,
    factor: torch.Tensor,
    step: float,
    leaps: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Follow the dynamics from each point with a fresh momentum.

    With A the factor, and A A' the inverse mass matrix, momenta are r ~ N(0, I), dq/dt = A r and
    dr/dt = A' grad log p(q).

    Returns:
        Where they end, with log densities and gradients there, and the kinetic energy that the
        way has cost.
    """

    def times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return rows * matrix if matrix.ndim == 1 else rows @ matrix

    momentum = torch.randn_like(points)
    before = momentum.square().sum(dim=1)
    values = gradients.new_zeros(len(points))
    momentum = momentum + 0.5 * step * times(gradients, factor)
    for leap in range(leaps):
        points = points + step * times(momentum, factor.mT if factor.ndim == 2 else factor)
        values, gradients = evaluate(points)
        share = 1.0 if leap < leaps - 1 else 0.5
        momentum = momentum + share * step * times(gradients, factor)
    return points, values, gradients, 0.5 * (before - momentum.square().sum(dim=1))


def _factor(points: torch.Tensor) -> torch.Tensor:
    """Return a factor of the covariance of points, (dim, dim), or their spread, (dim,)."""
    count, dim = points.shape
    spread = points.std(dim=0).clamp(min=1e-10)
    if dim > _DENSE_UP_TO or count < _CHAINS_PER_COORDINATE * dim:
        return spread
    scaled = points / spread
    covariance = torch.atleast_2d(torch.cov(scaled.mT)) + 1e-10 * torch.eye(dim).to(points)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return spread if bool(failed) else spread[:, None] * factor


def _scalars(values: dict[str, torch.Tensor]) -> tuple[tuple[str, ...], Array]:
    """Return the names of all scalars of the sites, and their values, (draw, scalar)."""
    names = tuple(
        scalar_name(site, index)
        for site, value in values.items()
        for index in np.ndindex(tuple(value.shape[1:]))
    )
    rows = [value.detach().cpu().double().reshape(len(value), -1) for value in values.values()]
    return names, torch.cat(rows, dim=1).numpy()


def _compare(names: tuple[str, ...], start: Array, end: Array, acceptance: float) -> ShortChains:
    """Return errors of the moments of starts as measured against ends, with their bounds.

    Starts and ends are pairs: what an error varies by is known from the pairs' own terms of it.
    """
    chains = len(start)
    # Of a tail so heavy that it has no moments, chance would decide.
    low, high = np.quantile(np.concatenate([start, end]), [_CLIPPED, 1 - _CLIPPED], axis=0)
    start, end = start.clip(low, high), end.clip(low, high)
    mean_0, mean_1 = start.mean(axis=0), end.mean(axis=0)
    sd_0, sd_1 = start.std(axis=0), end.std(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_errors = (mean_0 - mean_1) / sd_1
        of_mean = (start - end).std(axis=0) / sd_1 / math.sqrt(chains)
        log_ratio = np.log(sd_0 / sd_1)
        terms = np.square((start - mean_0) / sd_0) - np.square((end - mean_1) / sd_1)
        of_log = 0.5 * terms.std(axis=0) / math.sqrt(chains)
    chance = _quantile(len(names))
    mean_bounds = np.nan_to_num(np.maximum(np.abs(mean_errors) - chance * of_mean, 0.0))
    log_bounds = np.nan_to_num(np.maximum(np.abs(log_ratio) - chance * of_log, 0.0))
    sd_bounds = np.where(log_ratio < 0, -np.expm1(-log_bounds), np.expm1(log_bounds))
    return ShortChains(
        parameters=names,
        mean_errors=mean_errors,
        mean_bounds=mean_bounds,
        sd_errors=np.expm1(log_ratio),
        sd_bounds=sd_bounds,
        correlations=_rank_correlations(start, end),
        resolution=(
            2 * chance * float(np.nanmax(of_mean)),
            float(np.expm1(2 * chance * np.nanmax(of_log))),
        ),
        chains=chains,
        transitions=_STAGES * len(_SHRINK),
        acceptance=acceptance,
    )


def _rank_correlations(start: Array, end: Array) -> Array:
    """Return the rank correlation of each column of starts with that of ends."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=0) - (len(start) + 1) / 2 for values in (start, end)]
    norms = [np.sqrt(np.square(values).sum(axis=0)) for values in ranks]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (ranks[0] * ranks[1]).sum(axis=0) / (norms[0] * norms[1])
    # What never varies is no matter; what varies and has not moved at all depends on its start.
    constant = (np.ptp(start, axis=0) == 0) & (np.ptp(end, axis=0) == 0)
    return np.where(constant, 0.0, np.nan_to_num(found, nan=1.0))


def _quantile(parameters: int) -> float:
    """Return how many standard errors none of the errors of moments is off by chance."""
    return NormalDist().inv_cdf(1 - _FALSE_ALARM / (4 * parameters))


def _in_words(kind: str, name: str, error: float, bound: float) -> str:
    way = "large" if error > 0 else "small"
    size = percent(bound) if kind == "sd" else f"{number(bound)} sd"
    return f"the {kind} of {name} is at least {size} too {way}"
