"""NeuTra: the No-U-Turn sampler where a flow has made the posterior nearly normal."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from ppl_gen.core import LogDensity, Posterior, Problem, Result
from ppl_gen.core.errors import check_count
from ppl_gen.inference.mcmc.methods import NUTS
from ppl_gen.inference.start import refuse_constant
from ppl_gen.inference.vi.flow import FlowGuide
from ppl_gen.inference.vi.run import run as run_guide

__all__ = ["NeuTra"]


@dataclass(frozen=True)
class NeuTra:
    """NUTS on the noise of a flow, on any pair with continuous latents.

    A flow that is near the posterior makes it of standard normal noise, nearly; seen from there,
    the posterior has no funnels and no narrow bends, and long steps go everywhere. The draws are
    those of the posterior, in the model's own units, whatever the flow is worth: a poor one makes
    the chains slow, and their R-hat high.

    Steps pass through the flow's networks, which are compiled with the log density where that can
    be done: fitting the flow takes most of the time. Such a run cannot be extended.

    Args:
        flow: A posterior by `SVI(guide="flow")` of the same model and data; None: one is fitted.
        chains: Number of chains.
        draws: Draws of each chain that are kept, after its warm-up.
        warmup: Transitions of warm-up, not kept.
        target_accept: Mean acceptance that the step size is tuned to.
        max_tree_depth: At most 2**max_tree_depth - 1 leapfrog steps a draw.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If `flow` is no posterior by a flow.

    References:
        Hoffman, Sountsov, Dillon, Langmore, Tran and Vasudevan (2019), NeuTra-lizing Bad Geometry
        in Hamiltonian Monte Carlo Using Neural Transport, arXiv:1903.03704.

    Example:
        >>> NeuTra(chains=8).draws
        1000
    """

    flow: Posterior | None = None
    chains: int = 4
    draws: int = 1000
    warmup: int = 500
    target_accept: float = 0.8
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        for name in ("chains", "draws", "warmup", "max_tree_depth"):
            check_count(name, getattr(self, name))
        if not 0 < self.target_accept < 1:
            msg = f"target_accept: expected a number between 0 and 1, got {self.target_accept}."
            raise ValueError(msg)
        guide = self.flow.guide if isinstance(self.flow, Posterior) else self.flow
        if self.flow is not None and not isinstance(guide, FlowGuide):
            msg = (
                'flow: expected a posterior by SVI(guide="flow"), with its guide, got '
                f"{str(self.flow).splitlines()[0]}. Leave it out to have one fitted."
            )
            raise TypeError(msg)

    @property
    def is_mcmc(self) -> bool:
        """Its draws are Markov chains."""
        return True

    def run(self, problem: Problem) -> Result:
        """Fit a flow where none is given, and run the chains; see `ppl_gen.fit`."""
        from ppl_gen.inference.mcmc.run import run as run_chains

        density = LogDensity(
            problem.pair,
            problem.data,
            dtype=torch.float64,
            device=problem.device,
            prepared=problem.prepared,
        )
        refuse_constant(density)
        guide, spent = self._guide(problem, density)
        method = NUTS(
            chains=self.chains,
            draws=self.draws,
            warmup=self.warmup,
            target_accept=self.target_accept,
            max_tree_depth=self.max_tree_depth,
        )
        space = FlowDensity(density, guide)
        result = run_chains(method, dataclasses.replace(problem, out=None), space)
        again = (w.replace("posterior.extend(", "NeuTra(draws=") for w in result.warnings)
        return dataclasses.replace(
            result,
            warnings=tuple(again),
            gradient_evaluations=result.gradient_evaluations + spent,
            checkpoint={},  # which would have to hold the flow
        )

    def _guide(self, problem: Problem, density: LogDensity) -> tuple[FlowGuide, int]:
        """Return the flow, and the number of gradients that it took to fit it here."""
        if self.flow is None:
            fitted = run_guide("flow", 1, torch.float64, problem)
            guide, spent = fitted.guide, fitted.gradient_evaluations
        else:
            guide, spent = copy.deepcopy(self.flow.guide), 0
        assert isinstance(guide, FlowGuide)
        if guide.dim != density.dim:
            msg = (
                f"flow: expected one of {density.dim} coordinates, as the model has, got one of "
                f"{guide.dim}. Fit it to this model and data."
            )
            raise ValueError(msg)
        return guide.to(density.device, density.dtype).requires_grad_(False), spent


class FlowDensity(LogDensity):
    """A log density over the noise of a flow.

    With u = T(z) the flow, it is log p(T(z)) + log |det T'(z)|.

    Args:
        density: The log density over unconstrained vectors.
        guide: The flow, in its dtype and on its device.
    """

    def __init__(self, density: LogDensity, guide: FlowGuide) -> None:
        vars(self).update(vars(density))  # all else is the same
        self._density = density
        self._guide = guide

    def log_prob(
        self,
        vector: torch.Tensor,
        data: Mapping[str, Any] | None = None,
        handlers: tuple[Messenger, ...] = (),
    ) -> torch.Tensor:
        """Return the log density of noise, (dim,) or (n, dim), of the density's own data."""
        assert data is None
        assert not handlers
        rows = vector.reshape(-1, self.dim)
        moved, log_q = self._guide.forward_and_log_prob(rows)
        # The density of the noise over that of the flow is the determinant.
        noise = -0.5 * rows.square().sum(-1) - 0.5 * self.dim * math.log(2.0 * math.pi)
        value = self._density.log_prob(moved.reshape(vector.shape))
        return value + (noise - log_q).reshape(vector.shape[:-1])

    def log_prob_by_site(self, vector: torch.Tensor) -> dict[str, float]:
        """Return each site's own term of the log joint density, to find one that is not finite."""
        return self._density.log_prob_by_site(self._moved(vector))

    def constrain(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the latent sites' values of noise, (*batch, dim)."""
        return self._density.constrain(self._moved(vectors))

    @torch.no_grad()
    def _moved(self, vectors: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self._guide(vectors.reshape(-1, self.dim))
        return rows.reshape(vectors.shape)
