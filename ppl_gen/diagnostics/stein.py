"""The kernel Stein discrepancy: how far draws are from a density, from its gradient alone."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.two_samples import Distance, against_null, check_samples, thin

__all__ = ["stein_discrepancy"]

Array = NDArray[np.float64]


def stein_discrepancy(
    draws: ArrayLike, scores: ArrayLike, *, size: int = 1000, replicates: int = 499, seed: int = 0
) -> Distance:
    """Compute the squared kernel Stein discrepancy of independent draws from a target density.

    It needs no reference and no normalising constant: where draws x are from the target with score
    s(x), the expectation of s(x) f(x) + f'(x) is zero for every smooth f. The kernel is the inverse
    multi-quadric (1 + |x - y|^2 / h^2)^(-1/2) of draws in units of their sds, with h^2 the number
    of scalars: about half the squared distance of two draws.

    It is blind to how much of the target lies in modes that are far from each other, to a mode that
    no draw is in above all, and says little in many dimensions.

    Args:
        draws: Independent draws on an unconstrained space, shape `(draw, scalar)`.
        scores: The gradient of the target's log density at each draw, shape `(draw, scalar)`.
        size: Number of draws that are looked at, at most: memory grows with its square.
        replicates: Number of random signs that make up the null (a wild bootstrap).
        seed: Of the signs.

    Returns:
        The squared discrepancy by its unbiased estimate, which is about zero for right draws, and
        negative in half of them.

    Raises:
        ValueError: If shapes differ, there are fewer than ten draws, one or its score is not
            finite, or a scalar does not vary.

    References:
        Measuring sample quality with kernels. Gorham and Mackey, 2017. arXiv:1703.01717.
        A kernel test of goodness of fit. Chwialkowski, Strathmann and Gretton, 2016.
        arXiv:1602.02964.
        A kernelized Stein discrepancy for goodness-of-fit tests. Liu, Lee and Jordan, 2016.
        arXiv:1602.03253.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(1000, 2))
        >>> bool(stein_discrepancy(draws, -draws).p_value > 0.05)
        True
        >>> stein_discrepancy(draws, -draws / 1.5**2).p_value  # the target's sd is 1.5
        0.002
    """
    x, gradients = _checked(draws, scores)
    x, gradients = thin(x, size), thin(gradients, size)
    unit = x.std(axis=0)
    if (unit == 0.0).any():
        raise ValueError(
            f"draws: expected scalars that vary, got {int((unit == 0.0).sum())} of {len(unit)} "
            "that do not. Draws at a single point have no discrepancy."
        )
    terms = _stein_kernel((x - x.mean(axis=0)) / unit, gradients * unit)
    np.fill_diagonal(terms, 0.0)
    count = len(x)
    signs = np.random.default_rng(seed).integers(0, 2, size=(count, replicates)) * 2.0 - 1.0
    null = np.einsum("ij,ij->j", signs, terms @ signs)
    pairs = count * (count - 1)
    return against_null(float(terms.sum()) / pairs, null / pairs, (count, count))


def _checked(draws: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Return both as matrices in double precision."""
    shapes = np.shape(draws), np.shape(scores)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"scores: expected one gradient for each draw, of shape {shapes[0]}, got {shapes[1]}."
        )
    values = np.asarray(scores, dtype=np.float64)
    bad = (
        int((~np.isfinite(values).reshape(len(values), -1).all(axis=1)).sum()) if values.ndim else 0
    )
    if bad:
        raise ValueError(
            f"scores: expected finite numbers, got NaN or infinity at {bad} of {len(values)} "
            "draws. The target's log density has no gradient there."
        )
    return check_samples(draws, scores)


def _stein_kernel(x: Array, scores: Array) -> Array:
    """Return the Stein kernel of all pairs of draws, (draw, draw).

    With q = 1 + |x - y|^2 / h^2 and d scalars it is q^(-1/2) s(x).s(y)
    + q^(-3/2) ((s(x) - s(y)).(x - y) + d) / h^2 - 3 q^(-5/2) |x - y|^2 / h^4.
    """
    d = x.shape[1]
    inner = x @ x.T
    norms = np.diag(inner)
    squared = np.maximum(norms[:, None] + norms - 2 * inner, 0.0)
    across = scores @ x.T
    own = np.diag(across)
    along = own[:, None] + own - across - across.T
    q = 1 + squared / d
    root = 1 / np.sqrt(q)
    return np.asarray(
        root * (scores @ scores.T) + root**3 * (along + d) / d - 3 * root**5 * squared / d**2
    )
