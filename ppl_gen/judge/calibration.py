"""Simulation-based calibration: whether a method finds what data were simulated with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ppl_gen.core import Method, Posterior, SiteError, fit
from ppl_gen.core.arguments import bind, move
from ppl_gen.core.draws import map_draws
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.core.log_density import enumeration_dim, log_joint
from ppl_gen.core.pair import as_pair, cast, model_of, own_copy, signature
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import Site, Unobserve, trace_sites
from ppl_gen.diagnostics import ess_bulk
from ppl_gen.inference.progress import ProgressBar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Calibration", "Quantity", "simulation_based_calibration"]

Array = NDArray[np.float64]
Values: TypeAlias = Mapping[str, torch.Tensor]
# From the latent sites' values, (n, *site), and the data to one number each, (n,).
Quantity: TypeAlias = Callable[[Values, Mapping[str, Any]], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of true values among posterior draws: uniform where the posterior is right.

    Args:
        ranks: Number of draws below the true value, scaled to 0 ... `max_rank`, of shape
            `(replicate, quantity)`.
        names: Names of the quantities: scalars of latent sites, as `weights[2]`, the log joint
            density, and those that were asked for.
        max_rank: The largest rank.
        independent_draws: Number of nearly independent draws that each replicate's ranks were
            found among, of shape `(replicate,)`.
        method: Name of the inference method.
    """

    ranks: NDArray[np.int64]
    names: tuple[str, ...]
    max_rank: int
    independent_draws: NDArray[np.int64]
    method: str

    def p_values(self) -> Array:
        """Return how likely right ranks are to look as uneven as these, of shape `(quantity,)`.

        The statistic is the most extreme of the empirical distribution function's binomial tail
        probabilities, over all ranks at once. Its distribution is exact.
        """
        tails = _tails(len(self.ranks), self.max_rank)
        worst = tails[np.arange(self.max_rank)[:, None], self._counts()].min(axis=0)
        return _chance_of_tail(tails, worst)

    def passes(self, alpha: float = 0.01) -> bool:
        """Return whether all ranks are uniform, as far as the replicates can tell.

        Args:
            alpha: Probability that a right method fails, over all quantities together.
        """
        return bool(self.p_values().min() >= alpha / len(self.names))

    def table(self, alpha: float = 0.01) -> pd.DataFrame:
        """Return a row for each quantity: `quantity`, `p_value`, `mean_rank` and `verdict`.

        The mean rank lies between 0 and 1, and is 0.5 where draws are neither too high nor too low.

        Args:
            alpha: As for `passes`.
        """
        import pandas as pd

        p_values = self.p_values()
        unit = (self.ranks + 0.5) / (self.max_rank + 1)
        return pd.DataFrame(
            {
                "quantity": self.names,
                "p_value": p_values,
                "mean_rank": unit.mean(axis=0),
                "verdict": [
                    "calibrated" if p >= alpha / len(self.names) else _fault(column)
                    for p, column in zip(p_values, unit.T, strict=True)
                ],
            }
        )

    def __str__(self) -> str:
        """Return the table with a headline."""
        table = self.table()
        wrong = int((table["verdict"] != "calibrated").sum())
        verdict = f"{wrong} of {len(table)} quantities are miscalibrated" if wrong else "calibrated"
        text = f"{self.method} on {len(self.ranks)} simulated data sets: {verdict}.\n"
        few = int((self.independent_draws < self.max_rank).sum())
        if few:
            text += (
                f"In {few} of them fewer than {self.max_rank} draws are nearly independent, the "
                f"fewest {self.independent_draws.min()}: more draws would show smaller faults.\n"
            )
        return f"{text}{table.to_string(index=False, float_format='{:.3g}'.format)}"

    def plot(self, alpha: float = 0.01) -> Figure:
        """Draw how far each quantity's ranks are from uniform: inside the band all is well.

        Draws that are too high lift a curve above zero, too low ones press it down; draws that
        are spread too little bend it up first and down then, too much the other way round.

        Args:
            alpha: Probability that a curve of a right method leaves the band, over all quantities
                together.

        Returns:
            The figure, which belongs to no window.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        size, grid = len(self.ranks), np.arange(1, self.max_rank + 1) / (self.max_rank + 1)
        at = np.concatenate([[0.0], grid, [1.0]])
        inside = _tails(size, self.max_rank) > _level(size, self.max_rank, alpha / len(self.names))
        edges = np.stack([inside.argmax(axis=1), size - inside[:, ::-1].argmax(axis=1)], axis=1)
        edges = np.pad(edges / size - grid[:, None], ((1, 1), (0, 0)))
        panel.fill_between(at, edges[:, 0], edges[:, 1], color="#8a8f98", alpha=0.25, linewidth=0)
        curves = np.pad(self._counts() / size - grid[:, None], ((1, 1), (0, 0)))
        verdicts = self.table(alpha)["verdict"]
        colours = iter(["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"])
        for name, verdict, curve in zip(self.names, verdicts, curves.T, strict=True):
            colour = None if verdict == "calibrated" else next(colours, None)
            label = f"{name}: {verdict}" if colour else None
            width, level = (1.6, 3) if colour else (0.8, 2)
            panel.plot(
                at, curve, color=colour or "#5b6068", label=label, linewidth=width, zorder=level
            )
        panel.set_xlim(0.0, 1.0)
        panel.set_xlabel("rank of the true value among the draws")
        panel.set_ylabel("excess of ranks below")
        panel.set_title(f"{self.method}, {size} simulated data sets", fontsize=10)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize=8)
        return figure

    def _counts(self) -> NDArray[np.int64]:
        """Return how many ranks are below 1, 2, ..., `max_rank`: (rank, quantity)."""
        below = np.arange(1, self.max_rank + 1)[:, None, None]
        return np.asarray((self.ranks < below).sum(axis=1))


def simulation_based_calibration(
    pair: Any,
    data: Mapping[str, Any],
    method: Method,
    *,
    replicates: int = 200,
    max_rank: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    observed: Mapping[str, str] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Calibration:
    """Fit data simulated from the model, and rank what they were simulated with among the draws.

    Latents and observations are drawn from the prior; the method is run on each set of
    observations. If its draws come from the posterior, the rank of the true value among them is
    uniform, for each scalar of the latents and for any function of latents and data. The log joint
    density is always one of these: it shows, among others, draws that do not depend on the data.

    Autocorrelated draws have uneven ranks even where the sampler is right. They are thinned to as
    many as are worth independent ones, up to `max_rank`; ranks among fewer are spread over the
    whole range at random, as are ties.

    What it cannot see: faults that hardly matter under data that the prior makes likely, and
    anything that keeps the posterior as it is and only wastes time.

    Args:
        pair: The pair, or a Pyro function, with proper priors.
        data: What the model needs besides the observations. Those are left out where their
            argument has a default, or are given and not looked at.
        method: The method.
        replicates: Number of simulated data sets.
        max_rank: Number of draws that a true value is ranked among.
        quantities: Further quantities by name: functions from values (n, *site) of the latent
            sites and the data to numbers (n,).
        observed: The argument that holds the values of each observed site, where it is named
            otherwise than the site.
        seed: Seed of the simulations and fits.
        device: Where to run the fits, as for `fit`.
        progress: Whether to show a progress bar.

    Returns:
        The ranks. After Ctrl-C, those of the data sets that were done.

    Raises:
        SiteError: If no argument holds the values of an observed site, or the model has a factor.
        ValueError: If nothing is observed, a prior is improper, or a fit fails.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian inference algorithms
        with simulation-based calibration (2018), arXiv:1804.06788. Modrák, Moon, Kim, Bürkner,
        Huurre, Faltejsková, Gelman and Vehtari, Simulation-based calibration checking for Bayesian
        computation: the choice of test quantities shapes sensitivity (2023), arXiv:2211.02383.
        Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity and its applications
        in goodness-of-fit evaluation and multiple sample comparison (2022), arXiv:2103.10522.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from ppl_gen.inference import NUTS
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> nuts = NUTS(chains=2, draws=100, warmup=100)
        >>> calibration = simulation_based_calibration(
        ...     model, {}, nuts, replicates=20, max_rank=9, progress=False
        ... )
        >>> calibration.names, calibration.ranks.shape, calibration.passes()
        (('mean', 'log_joint'), (20, 2), True)
    """
    check_count("replicates", replicates)
    check_count("max_rank", max_rank)
    source = as_pair(pair)
    cpu, dtype = torch.device("cpu"), torch.float64
    with isolated(seed, dtype):
        work = cast(own_copy(source), dtype, cpu)
        given = move(bind(work, data), dtype, cpu)
        sites = trace_sites(work, given, "model", Unobserve())
    arguments = _arguments(work, given, sites, observed or {})
    unfitted = Posterior(draws={}, latents=(), observed=tuple(arguments), pair=work, data=given)
    truths, observations = unfitted.prior(draws=replicates, seed=seed)
    generator = np.random.default_rng(seed)
    ranker = _Ranker(work, truths, max_rank, quantities or {}, generator)
    with ProgressBar("calibration", replicates, enabled=progress) as bar:
        for index in range(replicates):
            simulated = {arguments[n]: v[0, index] for n, v in observations.items()}
            posterior = fit(
                pair,
                {**data, **simulated},
                method,
                seed=(seed + 1 + index) % 2**32,
                device=device,
                progress=False,
            )
            if posterior.interrupted:
                break
            ranker.add(posterior, {name: value[0, index] for name, value in truths.items()})
            bar.advance()
    if not ranker.ranks:
        raise KeyboardInterrupt("calibration was interrupted before its first fit was done.")
    return Calibration(
        ranks=np.stack(ranker.ranks),
        names=ranker.names,
        max_rank=max_rank,
        independent_draws=np.array(ranker.kept),
        method=type(method).__name__,
    )


def _arguments(
    pair: nn.Module, data: Mapping[str, Any], sites: Mapping[str, Site], named: Mapping[str, str]
) -> dict[str, str]:
    """Return the argument that holds the values of each observed site."""
    parameters = signature(pair).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in named:
        if name not in sites:
            raise unknown("observed site", name, sites)
    found = {}
    for name, site in sites.items():
        if site.kind == "factor":
            raise SiteError(
                name,
                expected="a model that data can be drawn from",
                got="a factor, which says how likely values are and not how to draw them",
                remedy="Write it as an observed site of a distribution.",
            )
        left_out = name in parameters and name not in data
        if site.kind != "observed" and name not in named and not left_out:
            continue
        argument = named.get(name, name)
        if argument not in parameters and not anything:
            raise SiteError(
                name,
                expected="an argument of the model that holds its values",
                got=f"the arguments {', '.join(parameters)}",
                remedy=f"Say which one it is: observed={{'{name}': '...'}}.",
            )
        found[name] = argument
    if not found:
        raise ValueError(
            "the model observes nothing: give values for the observed sites, which are not looked "
            "at, or name their arguments: observed={'site': 'argument'}."
        )
    return found


class _Ranker:
    """Finds the ranks of one replicate after the other."""

    def __init__(
        self,
        pair: nn.Module,
        truths: Values,
        max_rank: int,
        quantities: Mapping[str, Quantity],
        generator: np.random.Generator,
    ) -> None:
        self.pair = pair
        self.max_rank = max_rank
        self.quantities = quantities
        self.generator = generator
        # An element that never varies, as above the diagonal of a Cholesky factor, has no rank.
        self.scalars = {
            f"{name}[{', '.join(map(str, index))}]" if index else name: (name, index)
            for name, value in truths.items()
            for index in np.ndindex(value.shape[2:])
            if bool((value[(0, slice(None), *index)] != value[(0, 0, *index)]).any())
        }
        self.enumerated_below: int | None = None
        self.names: tuple[str, ...] = ()
        self.ranks: list[NDArray[np.int64]] = []
        self.kept: list[int] = []

    def add(self, posterior: Posterior, truth: Values) -> None:
        """Rank the true values among a posterior's draws."""
        # Discrete latents that were summed out have no draws.
        sites = [name for name in truth if name in posterior.latents]
        total = posterior.num_chains * posterior.num_draws
        count = min(self.max_rank, _independent(posterior, sites))
        places = ((torch.arange(count) + 0.5) * (total / count)).long()
        values = {}
        for name in sites:
            draws = posterior[name].flatten(0, 1)[places]
            both = torch.cat([truth[name].unsqueeze(0).to(draws.dtype), draws])
            values[name] = both.double() if both.is_floating_point() else both
        columns = self._columns(values, posterior.data or {})
        self.names = tuple(columns)
        numbers = np.stack([column.double().numpy() for column in columns.values()], axis=1)
        ties = (numbers[1:] == numbers[0]).sum(axis=0)
        rank = (numbers[1:] < numbers[0]).sum(axis=0)
        rank += self.generator.integers(0, ties, endpoint=True)
        if count < self.max_rank:
            unit = (rank + self.generator.random(len(rank))) / (count + 1)
            rank = np.floor(unit * (self.max_rank + 1)).astype(np.int64)
        self.ranks.append(rank)
        self.kept.append(count)

    def _columns(self, values: Values, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        data = move(data, torch.float64, torch.device("cpu"))
        columns = {
            label: values[name][(slice(None), *index)]
            for label, (name, index) in self.scalars.items()
            if name in values
        }
        columns["log_joint"] = self._log_joint(values, data)
        for label, quantity in self.quantities.items():
            columns[label] = quantity(values, data).detach().reshape(len(columns["log_joint"]))
        return columns

    def _log_joint(self, values: Values, data: Mapping[str, Any]) -> torch.Tensor:
        """Return the log joint density, discrete latents summed out, (n,)."""

        def one(point: Values) -> Values:
            replay = Replay(point)
            return {"": log_joint(model_of(self.pair), data, replay, self.enumerated_below)}

        with isolated(0, torch.float64), torch.no_grad(), unchecked(), AnswerParams(self.pair):
            if not self.ranks:  # the sites are the same for all replicates
                self.enumerated_below = enumeration_dim(trace_sites(self.pair, data))
            joint = map_draws(one, values)[""]
        return joint


def _independent(posterior: Posterior, sites: Sequence[str]) -> int:
    """Return how many independent draws a posterior's are worth, those of the worst scalar."""
    shape = posterior.num_chains, posterior.num_draws
    total = shape[0] * shape[1]
    if not posterior.is_mcmc:
        return total
    columns = [posterior[name].reshape(*shape, -1) for name in sites]
    if "lp" in posterior.sample_stats:
        columns.append(posterior.sample_stats["lp"].unsqueeze(-1))
    worth = ess_bulk(torch.cat([column.double() for column in columns], dim=-1).numpy())
    # Constants have none, and antithetic draws more than there are.
    return int(np.clip(np.nanmin(worth, initial=total), 1, total))


def _tails(size: int, max_rank: int) -> Array:
    """Return the two-sided tail probability of each count of ranks below each rank.

    Args:
        size: Number of ranks.
        max_rank: The largest rank.

    Returns:
        By rank 1, 2, ..., `max_rank` and count 0, 1, ..., `size`.
    """
    from scipy.stats import binom

    counts = np.arange(size + 1)
    chance = np.arange(1, max_rank + 1)[:, None] / (max_rank + 1)
    below, above = binom.cdf(counts, size, chance), binom.sf(counts - 1, size, chance)
    return np.asarray(np.minimum(1.0, 2.0 * np.minimum(below, above)))


def _chance_of_tail(tails: Array, levels: Array) -> Array:
    """Return the probability that uniform ranks have a tail as small as each level anywhere.

    The counts of ranks below 1, 2, ... are a Markov chain with binomial steps: the probability of
    all paths that stay inside is a product of matrices (Säilynoja et al. 2022, section 3.1).
    """
    from scipy.special import gammaln

    grid, size = len(tails), tails.shape[1] - 1
    log_factorial = gammaln(np.arange(size + 1) + 1.0)
    before, after = np.arange(size + 1)[:, None], np.arange(size + 1)
    added, left = np.maximum(after - before, 0), np.maximum(size - after, 0)
    log_ways = log_factorial[size - before] - log_factorial[added] - log_factorial[left]
    log_ways = np.where(after >= before, log_ways, -np.inf)
    paths = np.zeros((len(levels), size + 1))
    paths[:, 0] = 1.0
    for rank, tail in enumerate(tails):
        share = 1.0 / (grid + 1 - rank)  # of the ranks still above, those at this one
        step = np.exp(log_ways + added * np.log(share) + left * np.log1p(-share))
        # Equal counts have equal tails up to rounding.
        paths = (paths @ step) * (tail > levels[:, None] * (1.0 + 1e-9))
    return np.asarray(1.0 - paths.sum(axis=1))


def _level(size: int, max_rank: int, alpha: float) -> float:
    """Return the largest tail probability that uniform ranks go below with probability `alpha`."""
    tails = _tails(size, max_rank)
    low, high = alpha / (2 * max_rank), alpha
    for _ in range(2):
        levels = np.geomspace(low, high, 50)
        chances = _chance_of_tail(tails, levels)
        last = max(int((chances <= alpha).sum()) - 1, 0)
        low, high = levels[last], levels[min(last + 1, 49)]
    return float(low)


def _fault(unit: Array) -> str:
    """Say in words how ranks, scaled to (0, 1), differ from uniform ones."""
    shift = (unit.mean() - 0.5) * np.sqrt(12 * len(unit))
    if abs(shift) > 3:
        return "draws are too low" if shift > 0 else "draws are too high"
    return "draws are too narrow" if unit.var() > 1 / 12 else "draws are too wide"
