"""Pairs, log densities and posteriors: what everything else stands on."""

from ppl_gen.core.check import CheckReport, check
from ppl_gen.core.errors import LoadError, NonFiniteLossError, SiteError
from ppl_gen.core.fit import fit
from ppl_gen.core.loader import Batches
from ppl_gen.core.log_density import LogDensity
from ppl_gen.core.method import Guide, GuideDraws, Method, Problem, Result
from ppl_gen.core.pair import Pair
from ppl_gen.core.posterior import Posterior
from ppl_gen.core.store import load
from ppl_gen.core.watch import RankError

__all__ = [
    "Batches",
    "CheckReport",
    "Guide",
    "GuideDraws",
    "LoadError",
    "LogDensity",
    "Method",
    "NonFiniteLossError",
    "Pair",
    "Posterior",
    "Problem",
    "RankError",
    "Result",
    "SiteError",
    "check",
    "fit",
    "load",
]
