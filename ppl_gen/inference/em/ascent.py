"""EM by gradient: the log density with discrete latents summed out, climbed to a mode."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger

from ppl_gen.core import LogDensity, Problem, SiteError
from ppl_gen.core.blocks import Substitute
from ppl_gen.core.evaluation import Evaluate
from ppl_gen.core.log_density import log_joint
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.inference.em.steps import Values
from ppl_gen.inference.vi.mode import find_mode, widths_of

__all__ = ["GradientAscent", "Objective", "start_vectors"]

# What has not come to a mode by then has none.
_ROUNDS = 20


class _WithoutPriors(Messenger):
    """Takes the log densities of some sites out of the sum."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.names:
            msg["mask"] = False


class Objective(LogDensity):
    """What EM maximises: a density of the sites' own values, with no log-Jacobian in it.

    The log joint density of continuous latents and data, or the log-likelihood; discrete latents
    are summed out of either.

    Args:
        problem: Pair, data and device.
        priors: Whether the priors of the continuous latents are part of it.
    """

    def __init__(self, problem: Problem, *, priors: bool) -> None:
        self.priors = priors
        super().__init__(
            problem.pair, problem.data, device=problem.device, prepared=problem.prepared
        )

    @property
    def discrete(self) -> list[str]:
        """Names of the discrete latent sites."""
        return [name for name, site in self.model_sites.items() if site.kind == "discrete"]

    def at(self, values: Values, *, priors: bool) -> float:
        """Return the log joint density, or the log-likelihood, at values of the sites.

        Args:
            values: Values of the continuous latent sites, (*site).
            priors: Whether their priors are part of it.
        """
        with torch.no_grad():
            return float(self._density(Replay(values), self.data, priors=priors))

    def _log_prob(
        self, vector: torch.Tensor, data: Mapping[str, Any], handlers: tuple[Messenger, ...]
    ) -> torch.Tensor:
        assert not handlers
        substitute = Substitute(self.blocks, vector)
        value = self._density(substitute, data, priors=self.priors)
        substitute.check_complete()
        return value

    def _density(
        self, substitute: Messenger, data: Mapping[str, Any], *, priors: bool
    ) -> torch.Tensor:
        without = _WithoutPriors(() if priors else self.blocks.keys())
        with default_dtype(self.dtype), unchecked(), AnswerParams(self.pair), without:
            return log_joint(model_of(self.pair), data, substitute, self._enumerated_below)


class GradientAscent:
    """A climb by the gradient of the log density, discrete latents summed out.

    Args:
        density: What to maximise.
        evaluate: Its values (n,) and gradients (n, dim) of vectors (n, dim).
        start: A point of finite density, (dim,).
        told: Called after each evaluation.
    """

    def __init__(
        self,
        density: Objective,
        evaluate: Evaluate,
        start: torch.Tensor,
        told: Callable[[], None],
    ) -> None:
        self._density = density
        self._evaluate = evaluate
        self._told = told
        self._point = start
        self._widths = torch.ones_like(start)
        self._highest = float(evaluate(start.unsqueeze(0))[0])
        self._rounds = [self._highest]
        self.evaluations = 1
        self.ended = self.converged = False

    @property
    def history(self) -> list[float]:
        """The objective at the start and after each round, of one cut short by Ctrl-C too."""
        cut_short = self._highest > self._rounds[-1]
        return [*self._rounds, self._highest] if cut_short else self._rounds

    @property
    def objective(self) -> float:
        """The objective by now."""
        return self._highest

    @property
    def values(self) -> Values:
        """Where it is by now, by site."""
        density = self._density
        return density.constrain(self._point.to(density.device, density.dtype))

    @property
    def sound(self) -> bool:
        """Whether it came to a mode; where the density is unbounded there is none."""
        return self.converged

    def flaws(self) -> tuple[str, ...]:
        """Return what is wrong with where it is."""
        return ()

    def step(self, tolerance: float) -> None:
        """Climb by a round of L-BFGS, and a step of Newton's method.

        Args:
            tolerance: A round that gains less is the last.
        """
        before, origin, widths = self.objective, self._point, self._widths

        def standardised(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, gradients = self._watched(origin + widths * vectors)
            return values, gradients * widths

        mode = find_mode(standardised, np.zeros(len(origin)), most_rounds=1)
        self._point, self._highest = origin + widths * torch.from_numpy(mode.point), mode.log_prob
        # The next round is in units of how wide the density is here.
        self._widths = widths * torch.from_numpy(widths_of(np.diag(mode.precision)))
        self._rounds.append(mode.log_prob)
        self.converged = mode.converged
        last = len(self._rounds) > _ROUNDS or mode.log_prob - before <= tolerance
        self.ended = mode.converged or last

    def _watched(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate, and keep the highest point, for Ctrl-C."""
        values, gradients = self._evaluate(vectors)
        self.evaluations += len(vectors)
        if len(vectors) == 1 and float(values[0]) > self._highest:
            self._point, self._highest = vectors[0].clone(), float(values[0])
        self._told()
        return values, gradients


def start_vectors(density: Objective, evaluate: Evaluate, count: int) -> torch.Tensor:
    """Return points to start from: half of them drawn from the prior, half uniform.

    Draws of the prior know the scale of the data if the prior does; where it is wide, points about
    the origin are the better ones.

    Args:
        density: What is to be maximised.
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        count: How many.

    Raises:
        SiteError: If priors are left out, and the data say nothing of a site.
        ValueError: If no point of finite density is found.
    """
    from ppl_gen.inference.mcmc.init import start_points

    uniform = count // 2
    points, _, gradients = start_points(density, evaluate, count - uniform, "prior")
    if uniform:
        more, _, slopes = start_points(density, evaluate, uniform, "uniform")
        points, gradients = torch.cat([points, more]), torch.cat([gradients, slopes])
    for name, block in density.blocks.items():
        if not density.priors and not bool(gradients[:, block.start : block.stop].any()):
            raise SiteError(
                name,
                expected="a site that the likelihood depends on",
                got="a likelihood that is the same whatever its value",
                remedy='Only its prior says where it is: take EM(estimate="map").',
            )
    return points.cpu()
