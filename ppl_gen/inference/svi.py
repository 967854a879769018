"""Stochastic variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ppl_gen.core import LogDensity, Problem, Result
from ppl_gen.core.arguments import check_captured, move
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.core.evaluation import evaluation
from ppl_gen.core.loader import BatchSource, LoaderBatches
from ppl_gen.core.minibatch import split
from ppl_gen.core.own_rows import own_rows
from ppl_gen.core.pair import as_pair, cast, guide_of, model_of, own_copy, prepare
from ppl_gen.core.params import adopt_params
from ppl_gen.core.progress import announced
from ppl_gen.core.ranks import ranks
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.inference.bounds import ELBO, Objective
from ppl_gen.inference.guides import GaussianGuide
from ppl_gen.inference.objectives import Affine, GaussianObjective, PairObjective
from ppl_gen.inference.start import find_start
from ppl_gen.inference.training.loop import EpochInfo, Outcome, Training
from ppl_gen.inference.vi.deterministic import bound_of, fit_normal
from ppl_gen.inference.vi.families import FullRank, MeanField, Normal
from ppl_gen.inference.vi.mode import find_mode
from ppl_gen.inference.vi.run import NORMAL_GUIDES, NormalGuide, best_mode
from ppl_gen.inference.vi.run import run as run_normal

__all__ = ["SVI", "EpochInfo"]

GUIDES = (*NORMAL_GUIDES, "pair")
_BY_STEPS = ("mean_field", "full_rank")

OptimizerMaker: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
SchedulerMaker: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]

# Coordinates up to which the curvature at the mode, a matrix, is computed.
_MOST_CURVED = 2000
# Standard deviations of a guide before anything is known of the posterior.
_NARROW = 0.1
# Error of a guide, in standard deviations, that will do to start from.
_ROUGH = 0.2
# Nats by which the best of several restarts has to be better than another one to matter.
_APART = 0.1


@dataclass(frozen=True)
class SVI:
    """Variational inference: maximises the evidence lower bound of a guide.

    The guides by name work in unconstrained space on any pair with continuous latents (discrete
    ones are summed out), and need no other option: the bound is maximised on fixed quasi-random
    draws by a second-order optimiser, until fresh draws show that the error is small. The
    posterior's provenance says whether it `converged`, and gives the Pareto k-hat of the guide's
    importance weights as `pareto_k`; its `warnings` say what either means.

    "pair" trains the pair's own guide, and the parameters of its model, by steps on fresh draws; so
    are "mean_field" and "full_rank" where mini-batches, `particles`, a `callback`, another
    objective or anything else about steps is given, in units of a rough fit. With no option about
    their size or number, steps find both: several sizes are tried, steps are made until the
    iterates settle, averaged, and made again a third as large, until that gains nothing. With
    `steps`, `epochs` or `learning_rate` there are so many, of constant size over the first half,
    falling to zero along a half cosine in the second.

    With `fit(out=...)` a checkpoint is written every few seconds, and `resume=True` goes on from
    it: the run ends, on the CPU, with the very numbers that it would have had.

    Args:
        guide: "delta" (the maximum a posteriori in the model's units: a single draw), "laplace"
            (the normal of the curvature at the mode), "mean_field" (independent normals),
            "linear_response" (its means, with covariances by how they answer to a tilt of the
            posterior), "low_rank" (a normal of independent coordinates and ten directions),
            "structured" (a normal whose local latents, the sites inside a plate, are independent
            row by row given the globals; without plates it is "full_rank"), "full_rank" (any
            normal), "flow" (the full-rank guide bent by neural splines), or "pair".
        steps: Number of steps.
        epochs: Number of passes over mini-batched data.
        batch_size: Rows in a mini-batch; None: all of the data in each step, or the batches that a
            loader gives.
        plate: Name of the mini-batched plate; None: the first over the data's length.
        objective: What is maximised: `ELBO`, whose KL part may be weighed or annealed,
            `ImportanceWeighted`, `Renyi`, or `ReweightedWakeSleep` for discrete latents in the
            guide. The `elbo` of the posterior is the evidence lower bound under each of them.
        learning_rate: First step size of Adam. Where it is left out and the number of steps is
            given: 0.05 for Gaussian guides, of a standard deviation; for "pair" 1e-3 with
            mini-batches, which suits networks, and 0.01 with all of the data.
        optimizer: In place of Adam: a class of `torch.optim`, or a function that takes a list of
            parameters and returns an optimizer.
        scheduler: A function that takes the optimizer and returns a scheduler of
            `torch.optim.lr_scheduler`, which is moved on after each step.
        clip_norm: Norm that the gradient of all parameters together is shortened to.
        particles: Independent estimates of the objective in each step; None: 8 for the ELBO of
            Gaussian guides, else 1.
        compile: Whether to have the operators of a step fused by `torch.compile`, which takes ten
            seconds or more: for long trainings of large networks. Without it a step repeats the
            recorded operators, to the same bit.
        autocast: What matrix products and convolutions are computed in, such as torch.bfloat16;
            their results, and all else, stay in `dtype`.
        restarts: Number of fits, each from other first weights and with other noise, of which the
            one with the best ELBO is returned, and a warning tells where they differ. The guides
            by name compare several starts in any case.
        draws: Draws from the fitted guide to return.
        dtype: What to compute in; None: float64 for Gaussian guides, the pair's own for "pair".
        callback: Called with an `EpochInfo` after each epoch (with full data: each 100 steps).

    Raises:
        ValueError: If an option is out of range.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114. Kucukelbir et
        al. (2017), Automatic Differentiation Variational Inference, arXiv:1603.00788. Giordano,
        Ingram and Broderick (2024), Black Box Variational Inference with a Deterministic Objective,
        arXiv:2304.05527. Welandawe et al. (2022), Robust, Automated, and Accurate Black-box
        Variational Inference, arXiv:2203.15945.

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
    optimizer: OptimizerMaker | None = None
    scheduler: SchedulerMaker | None = None
    clip_norm: float | None = None
    particles: int | None = None
    compile: bool = False
    autocast: torch.dtype | None = None
    restarts: int = 1
    draws: int = 1000
    dtype: torch.dtype | None = None
    callback: Callable[[EpochInfo], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if self.guide not in GUIDES:
            raise unknown("guide", self.guide, GUIDES)
        for name in ("steps", "epochs", "batch_size", "particles", "restarts", "draws"):
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
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                msg = f"{name}: expected a positive number, got {value}."
                raise ValueError(msg)
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            msg = f"autocast: expected torch.bfloat16 or torch.float16, got {self.autocast}."
            raise ValueError(msg)
        self._check_optimizer()
        if self.steps is not None and self.epochs is not None:
            msg = "steps and epochs are both given: give one of them."
            raise ValueError(msg)

    def _check_steps(self) -> None:
        """Refuse options of steps for guides that are fitted without any."""
        given = self._about_steps()
        if given and self.guide not in (*_BY_STEPS, "pair"):
            msg = (
                f"{given[0]}: guide={self.guide!r} is fitted to all of the data without steps of a "
                'size to choose. Leave it out, or take guide="mean_field", "full_rank" or "pair".'
            )
            raise ValueError(msg)

    def _about_steps(self) -> list[str]:
        """Return the options about steps that are given."""
        names = (
            "steps",
            "batch_size",
            "learning_rate",
            "optimizer",
            "scheduler",
            "clip_norm",
            "particles",
            "autocast",
            "callback",
        )
        found = [name for name in names if getattr(self, name) is not None]
        return [*found, "compile"] if self.compile else found

    def _check_autocast(self, dtype: torch.dtype) -> None:
        """Refuse to leave a precision that the run does not have."""
        if self.autocast is not None and dtype != torch.float32:
            name = str(dtype).removeprefix("torch.")
            msg = (
                f"autocast: expected a run in float32, whose products it takes in fewer bits, and "
                f"this one is in {name}. Give dtype=torch.float32."
            )
            raise ValueError(msg)

    def _check_optimizer(self) -> None:
        """Refuse what makes no optimizer or scheduler."""
        for name in ("optimizer", "scheduler"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                msg = (
                    f"{name}: expected a function that makes one, got {type(value).__name__}: one "
                    "that exists has other parameters than the copy of the pair that is trained. "
                    "Write optimizer=torch.optim.AdamW, or "
                    "functools.partial(torch.optim.AdamW, lr=1e-3); "
                    "scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR("
                    "optimizer, 0.999)."
                )
                raise TypeError(msg)
        if self.optimizer is not None and self.learning_rate is not None:
            msg = (
                "optimizer and learning_rate are both given: give the step size to the optimizer, "
                "as in functools.partial(torch.optim.AdamW, lr=1e-3)."
            )
            raise ValueError(msg)

    @property
    def finds_its_own_steps(self) -> bool:
        """Whether size and number of the steps are found on the way."""
        annealed = isinstance(self.objective, ELBO) and callable(self.objective.beta)
        given = (self.steps, self.epochs, self.learning_rate, self.optimizer, self.scheduler)
        return not annealed and all(option is None for option in given)

    @property
    def is_mcmc(self) -> bool:
        """Its draws are independent: no Markov chains."""
        return False

    @property
    def takes_batches(self) -> bool:
        """Whether data may come from a loader, of any size."""
        return True

    def run(self, problem: Problem) -> Result:
        """Fit the guide and draw from it; see `ppl_gen.fit`."""
        self._check_batches(problem)
        if self.restarts > 1:
            return self._best_of_restarts(problem)
        if self.guide == "pair":
            return self._run_pair(problem)
        whole = problem.loader is None
        plain = self.objective == ELBO() and not self._about_steps() and whole
        if self.guide not in _BY_STEPS or plain:
            return run_normal(self.guide, self.draws, self.dtype or torch.float64, problem)
        return self._run_gaussian(problem)

    def _check_batches(self, problem: Problem) -> None:
        """Refuse options that do not go with the way in which the data come."""
        in_batches = self.epochs is not None or self.plate is not None
        msg = ""
        if problem.loader is None:
            if self.batch_size is None and in_batches:
                msg = "epochs and plate are for mini-batches: give batch_size, or steps instead."
        elif self.batch_size is not None:
            msg = "batch_size: the loader makes batches of its own size. Leave it out here."
        elif self.guide not in (*_BY_STEPS, "pair"):
            msg = (
                f"guide={self.guide!r} needs all of the data at once, and a loader gives "
                'mini-batches. Give tensors, or take guide="pair", "mean_field" or "full_rank".'
            )
        if msg:
            raise ValueError(msg)

    def _best_of_restarts(self, problem: Problem) -> Result:
        """Fit several times, and return the fit of the best bound.

        Checkpoints are those of one fit: a run that was killed starts with the first one again.
        """
        once = replace(self, restarts=1)
        pairs = [problem.pair, *(_fresh(problem.pair) for _ in range(self.restarts - 1))]
        results: list[Result] = []
        for pair in pairs:
            results.append(once.run(replace(problem, pair=pair, out=None, previous=None)))
            if results[-1].interrupted:
                break
        bounds = [-math.inf if r.elbo is None or r.failure else r.elbo[0] for r in results]
        chosen = int(np.argmax(bounds))
        result = results[chosen]
        if chosen:
            state = pairs[chosen].state_dict()
            adopt_params(problem.pair, state)
            problem.pair.load_state_dict(state)
        warnings = result.warnings
        error = 0.0 if result.elbo is None else result.elbo[1]
        worse = sum(bounds[chosen] - bound > _APART + 5 * error for bound in bounds)
        if worse:
            listed = ", ".join(f"{bound:.6g}" for bound in bounds)
            warnings += (
                f"{worse} of {len(bounds)} restarts ended in a worse optimum: their ELBOs are "
                f"{listed}. The best is returned; with more restarts there may be a better one.",
            )
        interrupted = results[-1].interrupted
        if interrupted:
            warnings += (f"Interrupted in restart {len(results)} of {self.restarts}.",)
        total = sum(r.gradient_evaluations for r in results)
        return replace(
            result,
            warnings=warnings,
            interrupted=interrupted,
            checkpoint={},
            gradient_evaluations=total,
            facts={**result.facts, "elbos_of_restarts": bounds},
        )

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
        self._check_autocast(dtype)
        cast(pair, dtype, problem.device)
        check_captured(pair, dtype, problem.device)
        data = move(problem.data, dtype, problem.device)
        with default_dtype(dtype):
            batches = own_rows(self._batches(problem, pair, data, dtype))
            few = data if batches is None else batches.few
            look = prepare(pair, few)
            pair.train()
            objective = PairObjective(
                pair,
                look,
                self.particles or 1,
                None if batches is None else batches.scale,
                self.objective,
            )
            training = Training(
                objective,
                batches,
                data,
                self,
                problem,
                module=pair,
                rate=0.01 if batches is None else 1e-3,
                local_rows=_local_rows(objective, batches),
            )
            outcome = training.run()
            pair.eval()
            draws, stats, elbo = self._draw_pair(objective, batches, look, outcome.failure)
            ended = outcome.failure is None and not outcome.interrupted
            # Without latents there is no bound to estimate, and a pass over the data costs much.
            if batches is not None and ended and objective.latents:
                elbo = _epoch_elbo(objective, batches)
        return Result(
            draws={name: value.unsqueeze(0) for name, value in draws.items()},
            sample_stats={name: value.unsqueeze(0) for name, value in stats.items()},
            data=look if batches is None else None,
            local_plate=None if batches is None else batches.plate,
            few=None if batches is None else few,
            guide=objective.guide,
            elbo=elbo,
            gradient_evaluations=len(outcome.history)
            * (self.particles or 1)
            * self.objective.samples,
            dtype=dtype,
            **_told(outcome),
        )

    def _draw_pair(
        self,
        objective: PairObjective,
        batches: BatchSource | None,
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
        self._check_autocast(dtype)
        family = self.guide
        assert family in ("mean_field", "full_rank")
        batches = None
        data: Mapping[str, Any] = problem.data
        if self.batch_size is not None or problem.loader is not None:
            pair = cast(problem.pair, dtype, problem.device)
            moved = move(problem.data, dtype, problem.device)
            with default_dtype(dtype):
                batches = self._batches(problem, pair, moved, dtype)
                assert batches is not None
                data = prepare(pair, batches.few)
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
        base = self._standardised(family, density, batches, problem)
        batches = own_rows(batches)
        guide = GaussianGuide(density.dim, family, init_scale=1.0).to(problem.device, dtype)
        objective = GaussianObjective(
            density,
            guide,
            self.particles or (8 if isinstance(self.objective, ELBO) else 1),
            None if batches is None else batches.scale,
            self.objective,
            Affine.of(base, problem.device, dtype),
        )
        with default_dtype(dtype):
            training = Training(
                objective,
                batches,
                None,
                self,
                problem,
                module=guide,
                rate=0.05,
                local_rows=0,
            )
            outcome = training.run()
        guide = objective.fitted().to(problem.device, dtype)
        elbo: tuple[float, float] | None
        if batches is None:
            drawn = guide.draw_from(density, self.draws)
            draws, stats, elbo = drawn.values, drawn.stats, drawn.elbo
            data = density.data
        else:
            with torch.no_grad():
                draws = density.constrain(guide.rsample(self.draws))
            stats = {}
            ended = outcome.failure is None and not outcome.interrupted
            elbo = _epoch_elbo(objective, batches) if ended else None
            data = problem.data
            if hasattr(pair, "prepare"):
                with default_dtype(dtype):
                    data = prepare(pair, moved)
        loaded = None if problem.loader is None else batches
        return Result(
            draws={name: value.detach().unsqueeze(0) for name, value in draws.items()},
            sample_stats={name: value.unsqueeze(0) for name, value in stats.items()},
            data=data,
            local_plate=None if loaded is None else loaded.plate,
            few=None if loaded is None else loaded.few,
            guide=guide,
            elbo=elbo,
            gradient_evaluations=len(outcome.history)
            * objective.particles
            * self.objective.samples,
            dtype=dtype,
            **_told(outcome),
        )

    def _standardised(
        self,
        family: Literal["mean_field", "full_rank"],
        density: LogDensity,
        batches: BatchSource | None,
        problem: Problem,
    ) -> Normal:
        """Return a normal near the guide, in whose units steps are made.

        Of all the data it is the guide fitted on few fixed draws. Where the data are so many that
        they are taken in mini-batches, it is the one of the curvature at the mode; of a loader's,
        with its first batch for all of them.
        """
        batched = batches is not None
        if batches is not None:
            pair = problem.pair
            if problem.loader is not None:
                pair = as_pair(batches.scale(model_of(pair)))
            density = LogDensity(pair, problem.data, dtype=density.dtype, device=problem.device)
        start = find_start(density).cpu().double().numpy()
        narrow = Normal(start, np.full(density.dim, _NARROW))
        if density.dim > _MOST_CURVED:
            return narrow
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        with announced("looking for where to start", enabled=problem.progress):
            evaluate = evaluation(density)
            rounding = torch.finfo(density.dtype).eps
            mode = (
                find_mode(evaluate, start, rounding=rounding)
                if batched
                else best_mode(evaluate, start, generator, rounding)
            )
            normal = mode.diagonal() if family == "mean_field" else mode.normal()
            if not batched:
                kind = MeanField if family == "mean_field" else FullRank
                return fit_normal(evaluate, kind, normal, generator, tolerance=_ROUGH).normal
            bounds = [bound_of(evaluate, one, generator) for one in (normal, narrow)]
        return normal if bounds[0] > bounds[1] else narrow

    def _batches(
        self, problem: Problem, pair: nn.Module, data: Mapping[str, Any], dtype: torch.dtype
    ) -> BatchSource | None:
        """Return what gives mini-batches; None where each step takes all of the data."""
        if problem.loader is not None:
            return LoaderBatches(problem.loader, pair, self.plate, dtype, problem.device)
        return None if self.batch_size is None else split(pair, data, self.batch_size, self.plate)


@torch.no_grad()
def _epoch_elbo(
    objective: GaussianObjective | PairObjective, batches: BatchSource
) -> tuple[float, float]:
    """Return the ELBO of all of the data, from two draws for each batch.

    The differences between the two give the Monte Carlo error without that of the data.
    """
    here = ranks()
    mean = squares = 0.0
    with unchecked(), here.own_noise(0):
        for batch in batches.epoch():
            first, second = (
                -float(objective.negative_elbo(batch)) / batches.num_batches for _ in range(2)
            )
            mean += (first + second) / 2
            squares += (first - second) ** 2
    of_all = torch.tensor([mean, squares / here.size], dtype=torch.float64, device="cpu")
    here.average_([of_all])
    return float(of_all[0]), math.sqrt(of_all[1]) / 2


def _told(outcome: Outcome) -> dict[str, Any]:
    """Return what a result says of its training."""
    return {
        "history": outcome.history,
        "interrupted": outcome.interrupted,
        "failure": outcome.failure,
        "warnings": outcome.warnings,
        "checkpoint": outcome.checkpoint,
        "facts": {"converged": outcome.converged},
    }


def _local_rows(objective: PairObjective, batches: BatchSource | None) -> int:
    """Return how many rows have latents of their own, or are all that a network is trained on."""
    sites = objective.model_sites
    local = [sites[name] for name in objective.latents if name in sites]
    plates = {
        plate.name: plate.size
        for site in (local if objective.latents else sites.values())
        for plate in site.plates
    }
    if batches is not None and batches.plate in plates:
        return batches.length
    return max(plates.values(), default=0)


def _fresh(pair: nn.Module) -> nn.Module:
    """Return a copy of a pair whose networks have other first weights."""
    copied = own_copy(pair)
    for module in copied.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return copied
