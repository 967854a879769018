"""Expectation maximisation as a method: restarts, the best of them, and what to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from ppl_gen.core import Problem, Result, SiteError
from ppl_gen.core.errors import check_count, unknown
from ppl_gen.core.evaluation import evaluation
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.progress import ProgressBar, announced
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.inference.em.ascent import GradientAscent, Objective, start_vectors
from ppl_gen.inference.em.responsibilities import responsibilities
from ppl_gen.inference.em.steps import ClosedFormAscent, EMSteps, Values, remaining_gain

__all__ = ["EM"]

Ascent: TypeAlias = ClosedFormAscent | GradientAscent

_ESTIMATES = ("map", "maximum_likelihood")


@dataclass(frozen=True)
class EM:
    """Expectation maximisation: point estimates of continuous latents, discrete ones summed out.

    A pair that offers its E and M steps in closed form (`HasEMSteps`), as `GaussianMixture` does,
    is fitted by them. Any other pair with discrete latents is fitted by gradient: by Fisher's
    identity the gradient of EM's expected log density, at the point whose responsibilities it is
    made of, is that of the log density with the discrete latents summed out. That one is climbed
    by L-BFGS and Newton's method, each step of which raises it.

    The estimate is the mode of the joint density of the sites' own values, with no Jacobian of a
    transformation in it; under flat priors that is maximum likelihood. The posterior has this one
    point as its only draw, `history` the negative objective (nats) at the start and after each
    step of the best restart, and the provenance "log_likelihood" and "log_joint" at the point,
    "converged", and the objectives that all restarts ended with, "restarts".
    `posterior.discrete()` draws discrete latents given the point.

    Kept is the highest of the restarts of which no component has collapsed; by gradient, of those
    that came to a mode.

    Args:
        estimate: "map", the mode of the posterior; or "maximum_likelihood", which leaves the
            priors of all continuous latents out. The likelihood of a mixture is unbounded where a
            component shrinks to a point; what bounds it is up to the pair.
        restarts: Number of runs, each from another start.
        max_steps: Steps of each restart at most. A step by gradient is a round of up to 300 of
            L-BFGS and one of Newton's method; it ends by itself after 20.
        tolerance: A restart ends once further steps are to gain less than that many nats.

    Raises:
        ValueError: If an option is out of range.

    References:
        Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm
        (1977), Journal of the Royal Statistical Society B 39(1), 1-38.
        Meng and Rubin, Maximum likelihood estimation via the ECM algorithm (1993), Biometrika
        80(2), 267-278.
        Salakhutdinov, Roweis and Ghahramani, Optimization with EM and
        expectation-conjugate-gradient (2003), International Conference on Machine Learning.

    Example:
        >>> EM(estimate="maximum_likelihood").restarts
        10
    """

    estimate: Literal["map", "maximum_likelihood"] = "map"
    restarts: int = 10
    max_steps: int = 1000
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if self.estimate not in _ESTIMATES:
            raise unknown("estimate", self.estimate, _ESTIMATES)
        check_count("restarts", self.restarts)
        check_count("max_steps", self.max_steps)
        if not 0 < self.tolerance < math.inf:
            msg = f"tolerance: expected a positive number of nats, got {self.tolerance}."
            raise ValueError(msg)

    @property
    def is_mcmc(self) -> bool:
        """Its draw is a point estimate: no Markov chain."""
        return False

    def run(self, problem: Problem) -> Result:
        """Climb from each start and keep the best; see `ppl_gen.fit`."""
        priors = self.estimate == "map"
        density = Objective(problem, priors=priors)
        offered = getattr(density.pair, "em_steps", None)
        steps = None if offered is None else offered(priors, **density.data)
        with default_dtype(density.dtype), unchecked(), AnswerParams(density.pair):
            ascents, interrupted = self._climb(problem, density, steps)
            best = max(ascents, key=lambda ascent: (ascent.sound, ascent.objective))
            values = {name: value.detach() for name, value in best.values.items()}
            warnings = (*self._end(best, interrupted), *best.flaws(), *_unused(density, values))
        return Result(
            draws={name: value[None, None] for name, value in values.items()},
            data=density.data,
            history=-torch.tensor(best.history, dtype=torch.float64),
            gradient_evaluations=sum(ascent.evaluations for ascent in ascents),
            interrupted=interrupted,
            warnings=warnings,
            facts={
                "converged": best.converged,
                "log_likelihood": density.at(values, priors=False),
                "log_joint": density.at(values, priors=True),
                "restarts": [ascent.objective for ascent in ascents],
            },
        )

    def _climb(
        self, problem: Problem, density: Objective, steps: EMSteps | None
    ) -> tuple[list[Ascent], bool]:
        """Return the climb from each start, and whether they were interrupted."""
        ascents: list[Ascent] = []
        with ProgressBar("EM", self.restarts, enabled=problem.progress) as bar:

            def told() -> None:
                status = ""
                if bar.due() and ascents:
                    now = ascents[-1]
                    status = f"restart {len(ascents)}, step {len(now.history)}, "
                    status += f"log density {now.objective:.8g}"
                bar.update(max(len(ascents) - 1, 0), status)

            begin = _starts(density, steps, self.restarts, problem.progress, told)
            try:
                for restart in range(self.restarts):
                    ascents.append(begin(restart))
                    while not ascents[-1].ended and len(ascents[-1].history) <= self.max_steps:
                        ascents[-1].step(self.tolerance)
                        told()
                bar.update(self.restarts)
            except KeyboardInterrupt as stop:
                if not ascents:
                    msg = "EM was interrupted before its first step: there is nothing to keep yet."
                    raise KeyboardInterrupt(msg) from stop
                return ascents, True
        return ascents, False

    def _end(self, best: Ascent, interrupted: bool) -> tuple[str, ...]:
        """Return a warning where the best climb did not come to its end."""
        if best.converged or interrupted:
            return ()
        if isinstance(best, ClosedFormAscent):
            left = remaining_gain(best.history)
            gain = f"about {left:.2g} nats" if math.isfinite(left) else "an unknown amount"
            return (
                f"EM has not converged in {self.max_steps} steps: further ones would gain {gain}. "
                "Raise max_steps.",
            )
        return (
            "EM came to no mode in any restart: what it maximises is unbounded, flat in some "
            "direction, or highest at the boundary of a support. Do not trust the point; tighter "
            'priors under EM(estimate="map") make a mode.',
        )


def _starts(
    density: Objective,
    steps: EMSteps | None,
    restarts: int,
    progress: bool,
    told: Callable[[], None],
) -> Callable[[int], Ascent]:
    """Return a function that begins a restart, by its number."""
    kind = type(density.pair).__name__
    if steps is not None:
        _compare(density, steps, kind)
        return lambda _: ClosedFormAscent(steps, kind)
    if not density.discrete:
        msg = (
            f"EM sums discrete latents out, and {kind} has none. For the mode and a normal "
            'distribution about it take SVI(guide="laplace"); for the posterior, NUTS().'
        )
        raise ValueError(msg)
    with announced("compiling the log density", enabled=progress):
        evaluate = evaluation(density)
    vectors = start_vectors(density, evaluate, restarts)
    return lambda restart: GradientAscent(density, evaluate, vectors[restart], told)


def _compare(density: Objective, steps: EMSteps, kind: str) -> None:
    """Refuse steps whose objective is not that of the model."""
    values = steps.start()
    for name, site in density.sites.items():
        shape = tuple(values[name].shape) if name in values else None
        if shape != site.shape:
            raise SiteError(
                name,
                expected=f"a value of shape {site.shape} among those of {kind}'s EM steps",
                got="none" if shape is None else f"shape {shape}",
                remedy="Let `start` and `maximise` return each continuous latent site.",
            )
    got = float(steps.expect(values)[1])
    expected = density.at(values, priors=density.priors)
    tolerance = math.sqrt(torch.finfo(density.dtype).eps)
    if not abs(got - expected) <= tolerance * (1 + abs(expected)):
        what = "log joint density" if density.priors else "log-likelihood"
        msg = (
            f"the EM steps of {kind} are not those of its model: at a start of theirs the {what} "
            f"is {expected:.10g}, and `expect` returns {got:.10g}. Compare the densities and, for "
            'estimate="map", the priors.'
        )
        raise ValueError(msg)


def _unused(density: Objective, values: Values) -> tuple[str, ...]:
    """Return a warning for values of discrete latents that less than one element takes."""
    if not density.discrete:
        return ()
    found = []
    for name, probabilities in responsibilities(density, values).items():
        if probabilities.ndim == 1:  # of no plate: its one element has one value
            continue
        counts = probabilities.flatten(0, -2).sum(0)
        unused = [str(k) for k, count in enumerate(counts.tolist()) if count < 1]
        if unused:
            elements = probabilities[..., 0].numel()
            found.append(
                f"Less than one of {elements} elements of '{name}' is expected to have value "
                f"{', '.join(unused)}: the data do not need so many values."
            )
    return tuple(found)
