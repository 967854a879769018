"""Whether a classifier can tell two samples apart: the classifier two-sample test."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.diagnostics.two_samples import Distance, check_samples, thin

__all__ = ["classifier_two_sample"]

Array = NDArray[np.float64]

_FOLDS = 5
# Of two scalars all there are. More of them find faults that are in all scalars at once, fewer
# those in one or two.
_FEATURES = 20
# Of standardised features that were chosen among many.
_INVERSE_PENALTY = 0.1


def classifier_two_sample(
    draws: ArrayLike, reference: ArrayLike, *, size: int = 1000, seed: int = 0
) -> Distance:
    """Train a classifier to tell draws from the reference's, and see how well it does on others.

    The classifier is a logistic regression on the normal scores z of each scalar's ranks among both
    samples, and on their products z_i z_j and z_i^2 z_j: it sees shifts, scales, correlations, and
    curved or funnel-shaped dependence. For each of five folds it is given the twenty of them that
    differ most in the other four. Ranks make it the same for any monotone function of a scalar.

    Args:
        draws: Independent draws, shape `(draw, scalar)`.
        reference: Independent draws, shape `(draw, scalar)`.
        size: Number of draws of each that are looked at, at most.
        seed: Of the folds.

    Returns:
        The area under the ROC curve on held-out draws: the probability that of a draw and one of
        the reference it says rightly which is which. 0.5 where they cannot be told apart, 1 where
        they always can. The null is that of Mann and Whitney, about 0.5.

    Raises:
        ValueError: If shapes differ, there are fewer than ten draws, or one is not finite.

    References:
        Revisiting classifier two-sample tests. Lopez-Paz and Oquab, 2017. arXiv:1610.06545.
        Sure independence screening for ultrahigh dimensional feature space. Fan and Lv, 2008,
        Journal of the Royal Statistical Society B 70. arXiv:math/0612857.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(2, 500, 2))
        >>> classifier_two_sample(x, y).p_value > 0.05
        True
        >>> y[:, 1] = y[:, 0] ** 2 + 0.5 * y[:, 1]
        >>> classifier_two_sample(x, y).value > 0.7
        True
    """
    from scipy.stats import norm

    x, y = check_samples(draws, reference)
    x, y = thin(x, size), thin(y, size)
    scores = normal_scores(np.concatenate([x, y]))
    is_draw = np.arange(len(scores)) < len(x)
    rng = np.random.default_rng(seed)
    # Each fold has its share of both samples: else a fold with more of one has fewer to learn from.
    fold = np.concatenate([rng.permutation(np.arange(len(part)) % _FOLDS) for part in (x, y)])
    areas, variances = [], []
    for held_out in range(_FOLDS):
        test = fold == held_out
        decision = _decision(scores[~test], is_draw[~test], scores[test])
        area, variance = _area_under_curve(decision, is_draw[test])
        areas.append(area)
        variances.append(variance)
    value = float(np.mean(areas))
    null = norm(0.5, np.sqrt(np.sum(variances)) / _FOLDS)
    return Distance(value, 0.5, float(null.ppf(0.95)), float(null.sf(value)), (len(x), len(y)))


def normal_scores(draws: Array) -> Array:
    """Return the normal quantiles of each scalar's ranks, equal ones at their mean rank.

    Args:
        draws: Shape `(draw, scalar)`.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri((rankdata(draws, axis=0) - 0.5) / len(draws)))


def _decision(train: Array, is_draw: NDArray[np.bool_], test: Array) -> Array:
    """Return how much each test draw looks like one of the draws, rather than the reference's."""
    from sklearn.linear_model import LogisticRegression

    chosen = _screen(train[is_draw], train[~is_draw])
    of_train, of_test = _features(train, chosen), _features(test, chosen)
    center, unit = of_train.mean(axis=0), of_train.std(axis=0)
    unit[unit == 0.0] = 1.0
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=200, tol=1e-3)
    model.fit((of_train - center) / unit, is_draw)
    return np.asarray(model.decision_function((of_test - center) / unit))


def _screen(x: Array, y: Array) -> NDArray[np.intp]:
    """Choose the features whose means differ most, in standard errors.

    Returns:
        The features' powers p and scalars i and j, shape `(3, feature)`: they are z_i^p z_j.
    """
    moments_x, moments_y = _feature_moments(x), _feature_moments(y)
    variance = (moments_x[1] - moments_x[0] ** 2) / len(x)
    variance += (moments_y[1] - moments_y[0] ** 2) / len(y)
    difference = np.abs(moments_x[0] - moments_y[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.nan_to_num(difference / np.sqrt(variance), nan=0.0, posinf=1e300)
    # Each power 0 and each product once.
    statistic[0, 1:] = -1.0
    statistic[1] = np.where(np.tri(x.shape[1], k=-1, dtype=bool), -1.0, statistic[1])
    flat = statistic.ravel()
    count = min(_FEATURES, int(np.count_nonzero(flat >= 0.0)))
    best = np.sort(np.argpartition(-flat, count - 1)[:count])
    return np.stack(np.unravel_index(best, statistic.shape))


def _feature_moments(z: Array) -> tuple[Array, Array]:
    """Return mean and mean square of z_i^p z_j, each of shape `(p, i, j)`."""
    square = z**2
    powers = np.stack([np.ones_like(z), z, square]).transpose(0, 2, 1)
    return powers @ z / len(z), powers**2 @ square / len(z)


def _features(z: Array, chosen: NDArray[np.intp]) -> Array:
    power, i, j = chosen
    return np.asarray(z[:, i] ** power * z[:, j])


def _area_under_curve(decision: Array, is_draw: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the area under the ROC curve and its variance where the decision is by chance."""
    from scipy.stats import rankdata

    n = int(is_draw.sum())
    m = len(is_draw) - n
    area = (rankdata(decision)[is_draw].sum() - n * (n + 1) / 2) / (n * m)
    return float(area), (n + m + 1) / (12 * n * m)
