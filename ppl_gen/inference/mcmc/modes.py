"""Chains of a warm-up that have settled in a region of no weight: which they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics import ess_bulk

__all__ = ["LEAST_CHAINS", "LEAST_DRAWS", "Restart", "restarts"]

Array = NDArray[np.float64]

# Of fewer chains none is in a position to say that another one is lost.
LEAST_CHAINS = 4
LEAST_DRAWS = 50
# A chain on its way, or one that hardly moves, has a smaller one: that of a random walk without an
# end is 1.3 to 16, whatever its length.
_AT_REST_ESS = 20
# Of a region of weight e^-20, 2e-9, a million draws are not expected to have one.
_NATS = 20.0
# The volume of a region that is not normal is estimated badly: by a factor of e in each direction,
# say. That of one that a chain does not explore is not known: 400 times as wide, say.
_NATS_PER_DIM = 1.0
_NATS_PER_UNKNOWN_DIM = 6.0


@dataclass(frozen=True)
class Restart:
    """A chain that is to start again from where another one is.

    Args:
        chain: The chain.
        donor: The other one.
        log_weight: Log of the most that the region weighs that the chain is in, relative to the
            heaviest.
    """

    chain: int
    donor: int
    log_weight: float


def restarts(log_probs: Array, log_volumes: Array, dim: int) -> list[Restart]:
    r"""Return which chains are in regions without weight.

    The weight of a region in which a chain is at rest is :math:`\log Z = E[\log p] + H`, with `H`
    the entropy of its draws: for a normal distribution of covariance `A A'` that is
    :math:`\log |A|`, and a constant that all regions share. The heaviest region in which a chain
    is at rest is what the others are compared with.

    - A chain at rest elsewhere is hopeless where its region weighs less by 20 nats, and one for
      each dimension.
    - A chain that is not at rest, because it is stuck or still on its way, is hopeless where its
      highest density is below the mean density of the heaviest region by 20 nats, and by 6 for
      each dimension: its region would have to be 400 times as wide in every direction.

    Args:
        log_probs: Log densities of the latest draws of each chain, (chain, draw).
        log_volumes: :math:`\log |A|` of each chain's metric, of the same draws, (chain,).
        dim: Number of dimensions.

    Returns:
        The hopeless chains, each with one of those in the heaviest region, in turn.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 200))
        >>> shifted = draws - [[0.0], [0.0], [100.0], [0.0]]
        >>> [restart.chain for restart in restarts(shifted, np.zeros(4), dim=1)]
        [2]
    """
    chains, draws = log_probs.shape
    # NaN, of a chain that never moved, is not large enough.
    at_rest = ess_bulk(log_probs.T[None]) >= _AT_REST_ESS
    if chains < LEAST_CHAINS or draws < LEAST_DRAWS or not at_rest.any():
        return []
    means = log_probs.mean(axis=1)
    weights = np.where(at_rest, means + log_volumes, -np.inf)
    heaviest = int(weights.argmax())
    relative = np.where(
        at_rest,
        weights - weights[heaviest],
        log_probs.max(axis=1) - means[heaviest] + _NATS_PER_UNKNOWN_DIM * dim,
    )
    limit = np.where(at_rest, -_NATS - _NATS_PER_DIM * dim, -_NATS)
    donors = np.flatnonzero(at_rest & (relative >= -_NATS_PER_DIM * dim))
    return [
        Restart(int(chain), int(donors[i % len(donors)]), float(relative[chain]))
        for i, chain in enumerate(np.flatnonzero(relative < limit))
    ]
