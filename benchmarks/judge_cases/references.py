"""Chains whose draws have exactly a target's distribution, or fall short of it in a known way."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import lfilter

from judge_cases.distributions import Array, Distribution
from ppl_gen import Posterior

CHAINS = 4
# How far chains that disagree start apart, in standard normal units, where the target has one mode.
_APART = 1.0
_DIVERGENT = 0.06


class Quality(enum.Enum):
    """Whether a reference can be judged by."""

    GOOD = "good"
    BORDERLINE = "near a gate"
    BAD = "bad"
    BLIND = "bad, and its draws cannot show it"
    NONE = "none"


@dataclass(frozen=True)
class Reference:
    """How a reference is drawn.

    Args:
        name: What it is, in words.
        quality: Whether it can be judged by.
        ess: Effective sample size of a mean, of all chains together.
        draws: Of each chain.
        apart: Whether each chain stays where it began; in one mode of a target that has two.
        one_mode: Whether all chains stay in the first mode.
        divergent: Whether many transitions diverged.
        is_mcmc: Whether it says that it is a Markov chain.
    """

    name: str
    quality: Quality
    ess: float = CHAINS * 1000.0
    draws: int = 1000
    apart: bool = False
    one_mode: bool = False
    divergent: bool = False
    is_mcmc: bool = True

    def sample(self, rng: np.random.Generator, target: Distribution) -> Array:
        """Return draws, (chain, draw, parameter).

        Each standard normal that the target is a function of follows an autoregression of its own
        with the same coefficient, so that every draw has exactly the target's distribution.
        """
        share = min(self.ess / (CHAINS * self.draws), 1.0)
        persistence = (1 - share) / (1 + share)
        fresh = rng.normal(size=(CHAINS, self.draws, target.noise))
        before = persistence * rng.normal(size=(CHAINS, 1, target.noise))
        scale = np.sqrt(1 - persistence**2)
        z = lfilter([scale], [1.0, -persistence], fresh, axis=1, zi=before)[0]
        if self.one_mode or (self.apart and hasattr(target, "mode")):
            # The first normal chooses the mode.
            within = [0 if self.one_mode else chain % 2 for chain in range(CHAINS)]
            modes = [target.mode(k) for k in within]  # type: ignore[attr-defined]
            pairs = zip(modes, z, strict=True)
            return np.stack([mode.transform(part[:, 1:]) for mode, part in pairs])
        if self.apart:
            z = z + _APART * (np.arange(CHAINS) % 2 - 0.5)[:, None, None]
        flat = target.transform(z.reshape(-1, target.noise))
        return flat.reshape(CHAINS, self.draws, -1)

    def posterior(self, rng: np.random.Generator, target: Distribution) -> Posterior:
        """Return the reference as a posterior, with the statistics that NUTS gives."""
        draws = self.sample(rng, target)
        log_prob = target.log_prob(draws.reshape(-1, target.dim)).reshape(draws.shape[:2])
        kinetic = rng.chisquare(target.dim, size=log_prob.shape) / 2
        diverging = rng.random(log_prob.shape) < (_DIVERGENT if self.divergent else 0.0)
        stats = {"lp": log_prob, "energy": kinetic - log_prob, "diverging": diverging}
        return posterior(
            draws,
            target,
            stats=stats if self.is_mcmc else {},
            is_mcmc=self.is_mcmc,
            method="NUTS" if self.is_mcmc else "SVI",
        )


def posterior(
    draws: Array,
    target: Distribution,
    *,
    stats: dict[str, Array],
    is_mcmc: bool,
    method: str,
) -> Posterior:
    """Return draws, (chain, draw, parameter), as a posterior with the sites of a target."""
    split = np.split(draws, np.cumsum([_size(shape) for shape in target.sites.values()]), axis=2)
    sites = {
        name: torch.as_tensor(part.reshape(*part.shape[:2], *shape))
        for (name, shape), part in zip(target.sites.items(), split, strict=False)
    }
    return Posterior(
        draws=sites,
        latents=tuple(sites),
        sample_stats={name: torch.as_tensor(value) for name, value in stats.items()},
        is_mcmc=is_mcmc,
        provenance={"method": method, "converged": True, "seed": 0, "dtype": "float64"},
    )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=int))


def choose(rng: np.random.Generator, target: Distribution) -> Reference:
    """Return a reference of a random kind: three of four can be judged by."""
    two_modes = hasattr(target, "mode")
    # R-hat of many parameters stays below 1.01 only where chains are worth more draws.
    least = 900 if target.dim <= 5 else 1800
    if two_modes and rng.random() < 0.1:
        return Reference("all chains in one mode", Quality.BLIND, one_mode=True)
    kind = rng.choice(
        ["independent", "chains", "borderline", "short", "apart", "divergent", "svi", "none"],
        p=[0.32, 0.43, 0.05, 0.06, 0.04, 0.03, 0.02, 0.05],
    )
    if kind == "independent":
        return Reference("independent draws", Quality.GOOD)
    if kind == "chains":
        ess = float(rng.uniform(least, 4000))
        return Reference(f"chains worth {ess:.0f} draws", Quality.GOOD, ess)
    if kind == "borderline":
        ess = float(rng.uniform(400, least))
        return Reference(f"chains worth {ess:.0f} draws", Quality.BORDERLINE, ess)
    if kind == "short":
        # A few draws, or many that hardly move.
        if rng.random() < 0.5:
            return Reference("50 draws a chain", Quality.BAD, 200.0, draws=50)
        ess = float(rng.uniform(20, 200))
        return Reference(f"chains worth {ess:.0f} draws", Quality.BAD, ess)
    if kind == "apart":
        return Reference("chains that disagree", Quality.BAD, apart=True)
    if kind == "divergent":
        return Reference("6 % divergent", Quality.BAD, divergent=True)
    if kind == "svi":
        return Reference("independent draws, said to be SVI", Quality.GOOD, is_mcmc=False)
    return Reference("none", Quality.NONE)
