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
from ppl_gen.core.scope import default_dtype, isolated, unchecked
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

_LOG_JOINT = "log_joint"


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
        return text + table.to_string(index=False, float_format="{:.3g}".format)

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
        at, ends = np.concatenate([[0.0], grid, [1.0]]), np.zeros((1, len(self.names)))
        inside = _tails(size, self.max_rank) > _level(size, self.max_rank, alpha / len(self.names))
        edges = np.stack([inside.argmax(axis=1), size - inside[:, ::-1].argmax(axis=1)], axis=1)
        edges = np.concatenate([ends[:, :1], edges / size - grid[:, None], ends[:, :1]])
        panel.fill_between(at, edges[:, 0], edges[:, 1], color="#8a8f98", alpha=0.25, linewidth=0)
        curves = np.concatenate([ends, self._counts() / size - grid[:, None], ends])
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
    ranker = _Ranker(work, max_rank, quantities or {}, np.random.default_rng(seed))
    with ProgressBar("calibration", replicates, enabled=progress) as bar:
        for index in range(replicates):
            simulated = {arguments[name]: v[0, index] for name, v in observations.items()}
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
    return ranker.result(truths, type(method).__name__)


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
        max_rank: int,
        quantities: Mapping[str, Quantity],
        generator: np.random.Generator,
    ) -> None:
        self.pair = pair
        self.max_rank = max_rank
        self.quantities = quantities
        self.generator = generator
        self.names: tuple[str, ...] = ()
        self.ranks: list[NDArray[np.int64]] = []
        self.kept: list[int] = []

    def add(self, posterior: Posterior, truth: Values) -> None:
        """Rank the true values among a posterior's draws."""
        # A discrete latent that was summed out has no draws, and one of the truth may go unused.
        sites = [name for name in posterior.latents if name in truth]
        flat = {name: posterior[name].flatten(0, 1) for name in sites}
        total = posterior.num_chains * posterior.num_draws
        count = min(self.max_rank, _worth(posterior, sites))
        places = ((torch.arange(count) + 0.5) * total / count).long()
        values = {
            name: torch.cat([truth[name].unsqueeze(0).to(draws.dtype), draws[places]]).double()
            if draws.is_floating_point()
            else torch.cat([truth[name].unsqueeze(0), draws[places]])
            for name, draws in flat.items()
        }
        columns = self._columns(values, posterior.data or {})
        self.names = tuple(columns)
        numbers = np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], axis=1)
        below = (numbers[1:] < numbers[0]).sum(axis=0)
        ties = (numbers[1:] == numbers[0]).sum(axis=0)
        rank = below + self.generator.integers(0, ties, endpoint=True)
        if count < self.max_rank:
            unit = (rank + self.generator.random(len(rank))) / (count + 1)
            rank = np.floor(unit * (self.max_rank + 1)).astype(np.int64)
        self.ranks.append(rank)
        self.kept.append(count)

    def _columns(self, values: Values, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        columns = {}
        for name, value in values.items():
            for index in np.ndindex(value.shape[1:]):
                label = f"{name}[{', '.join(map(str, index))}]" if index else name
                columns[label] = value[(slice(None), *index)]
        moved = move(data, torch.float64, torch.device("cpu"))
        columns[_LOG_JOINT] = self._log_joint(values, moved)
        for name, quantity in self.quantities.items():
            columns[name] = quantity(values, moved).detach().reshape(len(columns[_LOG_JOINT]))
        return columns

    def _log_joint(self, values: Values, data: Mapping[str, Any]) -> torch.Tensor:
        with isolated(0, torch.float64):
            below = enumeration_dim(trace_sites(self.pair, data))

        def one(point: Values) -> Values:
            return {_LOG_JOINT: log_joint(model_of(self.pair), data, Replay(point), below)}

        with torch.no_grad(), default_dtype(torch.float64), unchecked(), AnswerParams(self.pair):
            return map_draws(one, values)[_LOG_JOINT]

    def result(self, truths: Values, method: str) -> Calibration:
        """Return the ranks, those of scalars that never vary left out."""
        ranks = np.stack(self.ranks)
        fixed = set()
        for name, value in truths.items():
            for index in np.ndindex(value.shape[2:]):
                if bool((value[(0, slice(None), *index)] == value[(0, 0, *index)]).all()):
                    fixed.add(f"{name}[{', '.join(map(str, index))}]" if index else name)
        keep = [place for place, name in enumerate(self.names) if name not in fixed]
        return Calibration(
            ranks=ranks[:, keep],
            names=tuple(self.names[place] for place in keep),
            max_rank=self.max_rank,
            independent_draws=np.array(self.kept),
            method=method,
        )
