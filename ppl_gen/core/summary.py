"""The table of a posterior's scalars."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from ppl_gen.diagnostics import convergence, mcse_mean

if TYPE_CHECKING:
    import pandas as pd

    from ppl_gen.core.posterior import Posterior

__all__ = ["scalar_names", "summarise"]


def scalar_names(site: str, shape: tuple[int, ...]) -> list[str]:
    """Return a name for each scalar of a site, such as `weights[0, 2]`.

    Example:
        >>> scalar_names("weights", (2,))
        ['weights[0]', 'weights[1]']
    """
    if not shape:
        return [site]
    indices = itertools.product(*(range(size) for size in shape))
    return [f"{site}[{', '.join(map(str, index))}]" for index in indices]


def summarise(posterior: Posterior) -> pd.DataFrame:
    """Return the table that `Posterior.summary` describes."""
    import pandas as pd

    tables = []
    for site, draws in posterior.draws.items():
        array = draws.numpy().reshape(*draws.shape[:2], -1)
        pooled = array.reshape(-1, array.shape[2]).astype(np.float64)
        quantiles = np.quantile(pooled, [0.05, 0.5, 0.95], axis=0)
        one = np.full(array.shape[2], np.nan)
        columns = {
            "mean": pooled.mean(axis=0),
            "sd": pooled.std(axis=0, ddof=1) if len(pooled) > 1 else one,
            **{q: quantiles[i] for i, q in enumerate(("q5", "q50", "q95"))},
        }
        if posterior.is_mcmc:
            found = convergence(array)
            columns |= {
                "mcse_mean": mcse_mean(array),
                "ess_bulk": found.ess_bulk,
                "ess_tail": found.ess_tail,
                "r_hat": found.rhat,
            }
        tables.append(pd.DataFrame(columns, index=scalar_names(site, tuple(draws.shape[2:]))))
    return pd.concat(tables) if tables else pd.DataFrame()
