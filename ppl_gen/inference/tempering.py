"""Sequential Monte Carlo from prior to posterior, for the local latents of many rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch

__all__ = ["Particles", "temper"]

LogDensity: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# Each step of temperature leaves this part of the particles in weight.
_ESS = 0.5
_LEAPFROGS = 5
_TARGET_ACCEPT = 0.8
_FIRST_STEP_SIZE = 0.3
_BISECTIONS = 50
_LEAST_SCALE = 1e-3


class Particles(NamedTuple):
    """Equally weighted draws of each row's latents, and how they came about.

    Args:
        latents: The draws, (particle, row, latent).
        ancestors: The draw from the prior that each descends from, (particle, row).
        log_evidence: Log of the mean likelihood under the prior, (row,); the estimate of the mean
            itself is unbiased but for the adaptation.
        acceptance: Mean probability of acceptance of the moves at the end, (row,).
    """

    latents: torch.Tensor
    ancestors: torch.Tensor
    log_evidence: torch.Tensor
    acceptance: torch.Tensor


def temper(
    latents: torch.Tensor,
    log_prior: LogDensity,
    log_likelihood: LogDensity,
    *,
    moves: int,
    split: int,
    callback: Callable[[torch.Tensor], None],
) -> Particles:
    """Bring draws from the prior to the posterior of each row, through powers of the likelihood.

    From one power to the next, particles are resampled by their weights, and moved by Hamiltonian
    Monte Carlo. How far the next power is, and the size of the leapfrog steps, follow from the
    particles of each row.

    Args:
        latents: Draws from the prior, (particle, row, latent).
        log_prior: From latents to their log density, (particle, row).
        log_likelihood: From latents to the log likelihood of each row, (particle, row), in float64.
        moves: Number of moves at each power.
        split: Number of particles of all rows that are run at once.
        callback: Called with the powers that have been reached, (row,).

    Returns:
        The particles.

    Raises:
        ValueError: If the likelihood is finite at no draw from the prior.

    References:
        Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, Journal of the Royal
        Statistical Society B 68, 411-436. Buchholz, Chopin and Jacob (2021), Adaptive tuning of
        Hamiltonian Monte Carlo within sequential Monte Carlo, arXiv:1808.07730.
    """
    count, rows, _ = latents.shape
    density = _Tempered(log_prior, log_likelihood, split)
    points = density(latents)
    if not points.log_likelihood.isfinite().any(0).all():
        msg = "the likelihood is finite at no draw from the prior: look at the data and the pair."
        raise ValueError(msg)
    powers = points.log_likelihood.new_zeros(rows)
    log_evidence = torch.zeros_like(powers)
    step_size = torch.full_like(powers, _FIRST_STEP_SIZE).to(latents.dtype)
    ancestors = torch.arange(count, device=latents.device).unsqueeze(1).expand(count, rows)
    acceptance = torch.zeros_like(powers)
    while bool((powers < 1).any()):
        step = _next_step(points.log_likelihood, 1 - powers)
        log_weights = (step * points.log_likelihood).nan_to_num(nan=-math.inf)
        log_evidence += log_weights.logsumexp(0) - math.log(count)
        powers = powers + step
        chosen = _resample(log_weights)
        ancestors = ancestors.take_along_dim(chosen, 0)
        points = points.take(chosen)
        # Where a single particle is left, a step of no length would leave it alone for ever.
        scale = points.latents.std(0, correction=0).clamp_min(_LEAST_SCALE)
        acceptance = torch.zeros_like(powers)
        for _ in range(moves):
            lengths = step_size.unsqueeze(-1) * scale
            points, accepted = _move(density, points, powers, lengths)
            step_size = step_size * (accepted - _TARGET_ACCEPT).exp().to(step_size)
            acceptance += accepted / moves
        callback(powers)
    return Particles(points.latents, ancestors, log_evidence, acceptance)


class _Points(NamedTuple):
    """Latents, (particle, row, latent), with their two log densities and gradients."""

    latents: torch.Tensor
    log_prior: torch.Tensor
    log_likelihood: torch.Tensor
    prior_gradient: torch.Tensor
    likelihood_gradient: torch.Tensor

    def take(self, index: torch.Tensor) -> _Points:
        """Return the particles of an index, (particle, row)."""
        vector = index.unsqueeze(-1)
        return _Points(*(v.take_along_dim(vector if v.ndim == 3 else index, 0) for v in self))

    def where(self, chosen: torch.Tensor, other: _Points) -> _Points:
        """Return these particles where that is chosen, (particle, row), and others elsewhere."""
        vector = chosen.unsqueeze(-1)
        return _Points(
            *(
                torch.where(vector if mine.ndim == 3 else chosen, mine, theirs)
                for mine, theirs in zip(self, other, strict=True)
            )
        )

    def log_prob(self, powers: torch.Tensor) -> torch.Tensor:
        return self.log_prior + powers * self.log_likelihood

    def gradient(self, powers: torch.Tensor) -> torch.Tensor:
        return (
            self.prior_gradient + powers.unsqueeze(-1).to(self.latents) * self.likelihood_gradient
        )


class _Tempered:
    """Log prior and log likelihood with their gradients, so many particles at a time."""

    def __init__(self, log_prior: LogDensity, log_likelihood: LogDensity, split: int) -> None:
        self.log_prior = log_prior
        self.log_likelihood = log_likelihood
        self.split = split

    def __call__(self, latents: torch.Tensor) -> _Points:
        parts = []
        for part in latents.split(self.split):
            prior, prior_gradient = _value_and_gradient(self.log_prior, part)
            likelihood, likelihood_gradient = _value_and_gradient(self.log_likelihood, part)
            parts.append(_Points(part, prior, likelihood, prior_gradient, likelihood_gradient))
        return _Points(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _value_and_gradient(
    function: LogDensity, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _next_step(log_likelihood: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Return how far the power of each row may rise, (row,), so that enough particles count.

    Args:
        log_likelihood: Shape (particle, row).
        left: How far it is to 1, (row,).
    """
    finite = log_likelihood.isfinite()
    least = _ESS * finite.sum(0)
    relative = (log_likelihood - log_likelihood.amax(0)).masked_fill(~finite, -math.inf)
    below, above = torch.zeros_like(left), left
    enough = _effective(left * relative) >= least
    for _ in range(_BISECTIONS):
        middle = 0.5 * (below + above)
        good = _effective(middle * relative) >= least
        below, above = torch.where(good, middle, below), torch.where(good, above, middle)
    # The upper end is never zero, so that the powers get on.
    return torch.where(enough, left, above)


def _effective(log_weights: torch.Tensor) -> torch.Tensor:
    """Return the effective number of weighted particles, (row,)."""
    weights = log_weights.exp()
    return weights.sum(0).square() / weights.square().sum(0)


def _resample(log_weights: torch.Tensor) -> torch.Tensor:
    """Choose particles by their weights, systematically: indices, (particle, row)."""
    count, rows = log_weights.shape
    ends = log_weights.softmax(0).cumsum(0).mT.contiguous()
    start = torch.rand(rows, 1, dtype=ends.dtype, device=ends.device)
    places = (torch.arange(count, device=ends.device) + start) / count
    # The last end can be rounded to below the last place.
    return torch.searchsorted(ends, places).clamp_(max=count - 1).mT


def _move(
    density: _Tempered, points: _Points, powers: torch.Tensor, step_size: torch.Tensor
) -> tuple[_Points, torch.Tensor]:
    """Move all particles once by Hamiltonian Monte Carlo.

    Args:
        density: What is moved on.
        points: The particles.
        powers: Power of the likelihood, (row,).
        step_size: Size of a leapfrog step along each latent, (row, latent).

    Returns:
        The particles, and the mean probability of acceptance, (row,).
    """
    # Of random length: a fixed one can be a period of the motion.
    length = 0.5 + torch.rand_like(points.log_prior).unsqueeze(-1)
    step = length.to(points.latents) * step_size
    momentum = torch.randn_like(points.latents)
    moving, speed = points, momentum + 0.5 * step * points.gradient(powers)
    for i in range(_LEAPFROGS):
        moving = density(moving.latents + step * speed)
        part = 1.0 if i < _LEAPFROGS - 1 else 0.5
        speed = speed + part * step * moving.gradient(powers)
    gained = moving.log_prob(powers) - points.log_prob(powers)
    gained = gained + 0.5 * (momentum.square() - speed.square()).sum(-1)
    probability = gained.nan_to_num(nan=-math.inf, posinf=-math.inf).clamp(max=0).exp()
    accepted = torch.rand_like(probability) < probability
    return moving.where(accepted, points), probability.mean(0)
