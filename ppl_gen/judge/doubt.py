"""Judging by a reference that is not good enough: only errors far beyond its own are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.diagnostics.distances import simultaneous_z
from ppl_gen.diagnostics.marginals import Marginals
from ppl_gen.judge.errors import KINDS, Errors, compare
from ppl_gen.judge.findings import Thresholds
from ppl_gen.judge.marginals import by_chain

__all__ = ["errors_beyond_doubt"]

# Red begins so many times as far out: a reference with divergences may itself be off by that.
_TIMES = 3.0


def errors_beyond_doubt(
    found: Marginals,
    reference: Marginals,
    draws: Mapping[str, NDArray[Any]],
    thresholds: Thresholds,
) -> Errors:
    """Return errors against chains that may not agree, with floors that allow for it.

    Each chain is taken for one draw of what chains find: the standard error of their mean has as
    many degrees of freedom as there are chains, less one. Thresholds are three times as wide.

    Args:
        found: The marginals of the approximation.
        reference: Those of the reference.
        draws: Draws of the reference by site, (chain, draw, *site).
        thresholds: Where green ends and red begins.
    """
    from scipy.stats import t

    if next(iter(draws.values())).shape[0] == 1:
        draws = {site: _halves(values) for site, values in draws.items()}
    means, sds = by_chain(draws)
    chains = len(means)
    bound = simultaneous_z(max(means.shape[1], 1) * len(KINDS))
    level = 2 * t.sf(bound, np.inf)
    # In standard errors of a normal, which is what floors are made of.
    stretch = float(t.isf(level / 2, chains - 1)) / bound if chains > 1 else np.inf
    apart = stretch * means.std(axis=0, ddof=1) / np.sqrt(chains)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_sd = stretch * np.log(sds).std(axis=0, ddof=1) / np.sqrt(chains)
    of_sd = np.where(np.isfinite(of_sd), of_sd, np.inf)
    wide = dataclasses.replace(
        reference,
        mean_error=np.maximum(reference.mean_error, apart),
        log_sd_error=np.maximum(reference.log_sd_error, of_sd),
        quantile_errors=np.maximum(reference.quantile_errors, apart),
    )
    far = dataclasses.replace(
        thresholds,
        mean_green=thresholds.mean_red,
        mean_red=_TIMES * thresholds.mean_red,
        sd_green=thresholds.sd_red,
        sd_red=_TIMES * thresholds.sd_red,
    )
    return compare(found, wide, far)


def _halves(values: NDArray[Any]) -> NDArray[Any]:
    half = values.shape[1] // 2
    return np.concatenate([values[:, :half], values[:, -half:]]) if half else values
