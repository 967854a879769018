"""Stochastic variational inference."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ppl_gen.core import LogDensity, Problem, Result
from ppl_gen.core.arguments import check_captured, move
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.core.minibatch import MiniBatches, split
from ppl_gen.core.pair import cast, guide_of, prepare
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.inference.bounds import ELBO, Objective
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.inference.objectives import GaussianObjective, PairObjective
from ppl_gen.inference.progress import ProgressBar
from ppl_gen.inference.start import find_start
from ppl_gen.inference.vi.run import NORMAL_GUIDES, NormalGuide
from ppl_gen.inference.vi.run import run as run_normal

__all__ = ["SVI", "EpochInfo"]

GUIDES = (*NORMAL_GUIDES, "pair")
_BY_STEPS = ("mean_field", "full_rank")

# How often the parameters are kept, to go back to when the objective breaks down.
_SNAPSHOT_STEPS = 100


@dataclass(frozen=True)
class EpochInfo:
    """What a callback is told after each epoch.

    Args:
        epoch: Its number, from 1.
        step: Number of steps so far.
        loss: Mean loss of the epoch, the negative of what the objective maximises, for each row
            of mini-batched data; in nats.
        pair: The pair in training.
        seconds: Seconds since the first step.
    """

    epoch: int
    step: int
    loss: float
    pair: nn.Module
    seconds: float


@dataclass(frozen=True)
class SVI:
    """Variational inference: maximises the evidence lower bound of a guide.

    The guides by name work in unconstrained space on any pair with continuous latents (discrete
    ones are summed out), and need no other option: the bound is maximised on fixed quasi-random
    draws by a second-order optimiser, until fresh draws show that the error is small. The
    posterior's provenance says whether it `converged`, and gives the Pareto k-hat of the guide's
    importance weights as `pareto_k`; its `warnings` say what either means.

    "pair" trains the pair's own guide, and the parameters of its model, by Adam on fresh draws; so
    are "mean_field" and "full_rank" where `steps`, `learning_rate`, `particles`, `batch_size`, a
    `callback` or another objective is given. The step size is constant over the first half of the
    steps, and falls to zero along a half cosine in the second.

    Args:
        guide: "delta" (the maximum a posteriori in the model's units: a single draw), "laplace"
            (the normal of the curvature at the mode), "mean_field" (independent normals),
            "linear_response" (its means, with covariances by how they answer to a tilt of the
            posterior), "low_rank" (a normal of independent coordinates and ten directions),
            "structured" (a normal whose local latents, the sites inside a plate, are independent
            row by row given the globals; without plates it is "full_rank"), "full_rank" (any
            normal), "flow" (the full-rank guide bent by neural splines), or "pair".
        steps: Number of steps; None: `epochs` decide, or 3,000.
        epochs: Number of passes over mini-batched data.
        batch_size: Rows in a mini-batch; None: all of the data in each step.
        plate: Name of the mini-batched plate; None: the first over the data's length.
        objective: What is maximised: `ELBO`, whose KL part may be weighed or annealed,
            `ImportanceWeighted`, `Renyi`, or `ReweightedWakeSleep` for discrete latents in the
            guide. The `elbo` of the posterior is the evidence lower bound under each of them.
        learning_rate: First step size of Adam; None: 0.05 for Gaussian guides; for "pair" 1e-3 with
            mini-batches, which suits networks, and 0.01 with all of the data.
        particles: Independent estimates of the objective in each step; None: 8 for the ELBO of
            Gaussian guides, else 1.
        draws: Draws from the fitted guide to return.
        dtype: What to compute in; None: float64 for Gaussian guides, the pair's own for "pair".
        callback: Called with an `EpochInfo` after each epoch (with full data: each 100 steps).

    Raises:
        ValueError: If an option is out of range.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114. Kucukelbir et
        al. (2017), Automatic Differentiation Variational Inference, arXiv:1603.00788. Giordano,
        Ingram and Broderick (2024), Black Box Variational Inference with a Deterministic Objective,
        arXiv:2304.05527.

    Example:
        >>> SVI(guide="full_rank", steps=500).guide
        'full_rank'
    """

    guide: NormalGuide | Literal["pair"] = "mean_field"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    plate: str | None = None
    objective: Objective = ELBO()  # noqa: RUF009 - it is frozen
    learning_rate: float | None = None
    particles: int | None = None
    draws: int = 1000
    dtype: torch.dtype | None = None
    callback: Callable[[EpochInfo], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if self.guide not in GUIDES:
            raise unknown("guide", self.guide, GUIDES)
        for name in ("steps", "epochs", "batch_size", "particles", "draws"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if not isinstance(self.objective, Objective):
            msg = (
                "objective: expected one such as ELBO() or ImportanceWeighted(), got "
                f"{self.objective!r}."
            )
            raise TypeError(msg)
        self._check_steps()
        if self.objective != ELBO() and self.guide not in (*_BY_STEPS, "pair"):
            msg = (
                f"objective: guide={self.guide!r} is fitted to the ELBO alone. Leave objective "
                'out, or take guide="mean_field", "full_rank" or "pair".'
            )
            raise ValueError(msg)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            msg = f"learning_rate: expected a positive number, got {self.learning_rate}."
            raise ValueError(msg)
        if self.steps is not None and self.epochs is not None:
            msg = "steps and epochs are both given: give one of them."
            raise ValueError(msg)
        if self.batch_size is None and (self.epochs is not None or self.plate is not None):
            msg = "epochs and plate are for mini-batches: give batch_size, or steps instead."
            raise ValueError(msg)

    def _check_steps(self) -> None:
        """Refuse options of steps for guides that are fitted without any."""
        names = ("steps", "batch_size", "learning_rate", "particles", "callback")
        given = [name for name in names if getattr(self, name) is not None]
        if given and self.guide not in (*_BY_STEPS, "pair"):
            msg = (
                f"{given[0]}: guide={self.guide!r} is fitted to all of the data without steps of a "
                'size to choose. Leave it out, or take guide="mean_field", "full_rank" or "pair".'
            )
            raise ValueError(msg)

    @property
    def is_mcmc(self) -> bool:
        """Its draws are independent: no Markov chains."""
        return False

    def run(self, problem: Problem) -> Result:
        """Fit the guide and draw from it; see `ppl_gen.fit`."""
        if self.guide == "pair":
            return self._run_pair(problem)
        by_hand = (self.steps, self.batch_size, self.learning_rate, self.particles, self.callback)
        plain = self.objective == ELBO() and all(option is None for option in by_hand)
        if self.guide not in _BY_STEPS or plain:
            return run_normal(self.guide, self.draws, self.dtype or torch.float64, problem)
        return self._run_gaussian(problem)

    def _run_pair(self, problem: Problem) -> Result:
        pair = problem.pair
        if guide_of(pair) is None:
            msg = (
                'guide="pair": the pair has no guide. Write `def guide(self, **data)`, or take '
                'guide="mean_field" or "full_rank".'
            )
            raise ValueError(msg)
        parameter = next((p for p in pair.parameters() if p.is_floating_point()), None)
        own = torch.get_default_dtype() if parameter is None else parameter.dtype
        dtype = self.dtype or own
        cast(pair, dtype, problem.device)
        check_captured(pair, dtype, problem.device)
        data = move(problem.data, dtype, problem.device)
        with default_dtype(dtype):
            batches = None if self.batch_size is None else self._split(pair, data)
            look = data if batches is None else batches.rows(torch.arange(2, device=problem.device))
            look = prepare(pair, look)
            pair.train()
            objective = PairObjective(
                pair,
                look,
                self.particles or 1,
                None if batches is None else batches.scale,
                self.objective,
            )
            rate = 0.01 if batches is None else 1e-3
            training = _Training(objective, batches, data, self, problem, rate)
            failure, interrupted = training.run()
            pair.eval()
            draws, stats, elbo = self._draw_pair(objective, batches, look, failure)
            if batches is not None and failure is None and not interrupted:
                elbo = _epoch_elbo(objective, batches)
        return Result(
            draws={name: value.unsqueeze(0) for name, value in draws.items()},
            sample_stats={name: value.unsqueeze(0) for name, value in stats.items()},
            data=look if batches is None else None,
            local_plate=None if batches is None else batches.plate,
            guide=objective.guide,
            history=training.history(),
            elbo=elbo,
            gradient_evaluations=len(training.losses)
            * (self.particles or 1)
            * self.objective.samples,
            interrupted=interrupted,
            failure=failure,
            dtype=dtype,
        )

    def _draw_pair(
        self,
        objective: PairObjective,
        batches: MiniBatches | None,
        look: Mapping[str, Any],
        failure: str | None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], tuple[float, float] | None]:
        """Return draws of the guide, without those of local latents, and what is known of them."""
        local = {
            name
            for name, site in objective.model_sites.items()
            if (batches is not None and site.inside(batches.plate)) or site.subsampled
        }
        if local >= objective.latents:
            return {}, {}, None
        try:
            drawn = objective.guide.draw(objective.pair, look, self.draws)
        except ValueError:
            if failure is None:
                raise
            return {}, {}, None  # what broke the loss breaks the guide as well
        draws = {name: value for name, value in drawn.values.items() if name not in local}
        if batches is not None or any(s.subsampled for s in objective.model_sites.values()):
            return draws, {}, None
        return draws, drawn.stats, drawn.elbo

    def _run_gaussian(self, problem: Problem) -> Result:
        dtype = self.dtype or torch.float64
        family = self.guide
        assert family in ("mean_field", "full_rank")
        batches = None
        data: Mapping[str, Any] = problem.data
        if self.batch_size is not None:
            pair = cast(problem.pair, dtype, problem.device)
            moved = move(problem.data, dtype, problem.device)
            with default_dtype(dtype):
                batches = self._split(pair, moved)
            data = batches.rows(torch.arange(min(2, batches.length), device=problem.device))
            with default_dtype(dtype):
                data = prepare(pair, data)
        density = LogDensity(
            problem.pair,
            data,
            dtype=dtype,
            device=problem.device,
            prepared=batches is not None,
        )
        if batches is not None:
            local = [s.name for s in density.sites.values() if s.inside(batches.plate)]
            if local:
                msg = (
                    f"{', '.join(local)}: a latent for each row of plate '{batches.plate}' cannot "
                    f'be mini-batched under guide="{family}". Write a guide and take '
                    'guide="pair", or leave batch_size out.'
                )
                raise ValueError(msg)
        guide = GaussianGuide(density.dim, family).to(problem.device, dtype)
        start = find_start(density)
        with torch.no_grad():
            guide.loc.copy_(start)
        objective = GaussianObjective(
            density,
            guide,
            self.particles or (8 if isinstance(self.objective, ELBO) else 1),
            None if batches is None else batches.scale,
            self.objective,
        )
        training = _Training(objective, batches, None, self, problem, 0.05)
        with default_dtype(dtype):
            failure, interrupted = training.run()
        elbo: tuple[float, float] | None
        if batches is None:
            drawn = guide.draw_from(density, self.draws)
            draws, stats, elbo = drawn.values, drawn.stats, drawn.elbo
            data = density.data
        else:
            with torch.no_grad():
                draws = density.constrain(guide.rsample(self.draws))
            stats = {}
            ended = failure is None and not interrupted
            elbo = _epoch_elbo(objective, batches) if ended else None
            data = problem.data
            if hasattr(pair, "prepare"):
                with default_dtype(dtype):
                    data = prepare(pair, moved)
        return Result(
            draws={name: value.detach().unsqueeze(0) for name, value in draws.items()},
            sample_stats={name: value.unsqueeze(0) for name, value in stats.items()},
            data=data,
            guide=guide,
            history=training.history(),
            elbo=elbo,
            gradient_evaluations=len(training.losses)
            * objective.particles
            * self.objective.samples,
            interrupted=interrupted,
            failure=failure,
            dtype=dtype,
        )

    def _split(self, pair: nn.Module, data: Mapping[str, Any]) -> MiniBatches:
        assert self.batch_size is not None
        return split(pair, data, self.batch_size, self.plate)


class _Training:
    """The loop of an SVI run: steps over batches, with all that may stop it."""

    def __init__(
        self,
        objective: GaussianObjective | PairObjective,
        batches: MiniBatches | None,
        data: Mapping[str, Any] | None,
        options: SVI,
        problem: Problem,
        default_rate: float,
    ) -> None:
        self.objective = objective
        self.batches = batches
        self.data = data
        self.problem = problem
        self.callback = options.callback
        per_epoch = 100 if batches is None else batches.num_batches
        self.per_epoch = per_epoch
        self.steps = options.steps or (options.epochs * per_epoch if options.epochs else 3000)
        self.rows = 1 if batches is None else batches.length
        self.parameters = dict(objective.named_parameters())
        if not self.parameters:
            msg = 'guide="pair": neither model nor guide has a parameter to train.'
            raise ValueError(msg)
        rate = options.learning_rate or default_rate
        # The fused kernel does in one pass what Adam's formula does in ten.
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=rate, fused=True)
        self.rate = rate
        self.losses: list[float] = []
        self.snapshot: list[torch.Tensor] = []

    def _rate(self) -> float:
        """Return the size of the next step: flat, then a half cosine down to zero."""
        done = max(0.0, 2.0 * len(self.losses) / self.steps - 1.0)
        return self.rate * (0.5 + 0.5 * math.cos(math.pi * done))

    def history(self) -> torch.Tensor:
        """Return the loss after each step, (step,)."""
        return torch.tensor(self.losses, dtype=torch.float64)

    def run(self) -> tuple[str | None, bool]:
        """Train; return why it had to stop, if it had to, and whether it was interrupted."""
        started = time.perf_counter()
        bar = ProgressBar("SVI", self.steps, enabled=self.problem.progress)
        with bar, unchecked(), warnings.catch_warnings():
            # Pyro warns of what is an error here, with the batch and the parameter.
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]?inf)")
            try:
                for step, (epoch, position, batch) in enumerate(self._batches(), start=1):
                    failure = self._step(epoch, position, batch)
                    if failure is not None:
                        return failure, False
                    bar.advance(f"loss {self._recent():.5g}" if bar.due() else "")
                    if self.callback is not None and step % self.per_epoch == 0:
                        seconds = time.perf_counter() - started
                        self._call_back(
                            EpochInfo(epoch, step, self._epoch_loss(), self._pair, seconds)
                        )
            except KeyboardInterrupt:
                if not self.losses:
                    raise
                return None, True
        return None, False

    @property
    def _pair(self) -> nn.Module:
        return self.problem.pair

    def _call_back(self, info: EpochInfo) -> None:
        assert self.callback is not None
        self.callback(info)
        self._pair.train()

    def _epoch_loss(self) -> float:
        last = self.losses[-self.per_epoch :]
        return sum(last) / len(last) / self.rows

    def _recent(self) -> float:
        last = self.losses[-50:]
        return sum(last) / len(last) / self.rows

    def _batches(self) -> Iterator[tuple[int, int, Any]]:
        """Yield epoch and position, from 1, with the batch, as many as there are steps."""

        def endless() -> Iterator[tuple[int, int, Any]]:
            for epoch in itertools.count(1):
                whole = itertools.repeat(self.data, self.per_epoch)
                batches = whole if self.batches is None else self.batches.epoch()
                for position, batch in enumerate(batches, start=1):
                    yield epoch, position, batch

        return itertools.islice(endless(), self.steps)

    def _step(self, epoch: int, position: int, batch: Any) -> str | None:
        """Make one step; return what went wrong if its loss is not finite."""
        if len(self.losses) % _SNAPSHOT_STEPS == 0:
            self._keep()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(batch, len(self.losses) / self.steps)
        value = loss.item()
        if not math.isfinite(value):
            message = self._failure(value, epoch, position, batch)
            self._go_back()
            return message
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.losses.append(value)
        return None

    def _keep(self) -> None:
        """Keep the parameters, unless they have become NaN."""
        values = [p.detach().clone() for p in self.parameters.values()]
        if not self.snapshot or all(bool(torch.isfinite(v).all()) for v in values):
            self.snapshot = values

    def _go_back(self) -> None:
        if all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            return
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), self.snapshot, strict=True):
                parameter.copy_(value)

    def _failure(self, value: float, epoch: int, position: int, batch: Any) -> str:
        where = f"step {len(self.losses) + 1}"
        if self.batches is not None:
            where += f" (epoch {epoch}, batch {position} of {self.batches.num_batches})"
        bad = [n for n, p in self.parameters.items() if not bool(torch.isfinite(p).all())]
        if bad:
            blamed = f"parameter '{bad[0]}' had become NaN or infinite"
        else:
            try:
                blamed = self.objective.blame(batch)
            except (ValueError, RuntimeError) as error:
                blamed = str(error)
            if not blamed:
                blamed = (
                    f"parameter '{self._worst_gradient(batch)}' gets a gradient that is not finite"
                )
        return (
            f"the loss became {value} at {where}: {blamed}. Lower the learning rate, check the "
            "scale of the data, or keep scales away from zero. `error.posterior` holds the last "
            "good state."
        )

    def _worst_gradient(self, batch: Any) -> str:
        self.objective.loss(batch).backward()
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return name
        return next(iter(self.parameters))


@torch.no_grad()
def _epoch_elbo(
    objective: GaussianObjective | PairObjective, batches: MiniBatches
) -> tuple[float, float]:
    """Return the ELBO of all of the data, from two draws for each batch.

    The differences between the two give the Monte Carlo error without that of the data.
    """
    mean = squares = 0.0
    with unchecked():
        for batch in batches.epoch(shuffle=False):
            first, second = (
                -float(objective.negative_elbo(batch)) / batches.num_batches for _ in range(2)
            )
            mean += (first + second) / 2
            squares += (first - second) ** 2
    return mean, math.sqrt(squares) / 2
