"""The 20 reference posteriors as pairs, by name."""

from __future__ import annotations

from dynamics import DYNAMICS
from latent_variables import LATENT_VARIABLES
from reference import ReferencePosterior
from regressions import REGRESSIONS
from time_series import TIME_SERIES

__all__ = ["POSTERIORS"]

POSTERIORS: dict[str, ReferencePosterior] = {
    posterior.name: posterior
    for posterior in (*LATENT_VARIABLES, *REGRESSIONS, *TIME_SERIES, *DYNAMICS)
}
