"""What judging posteriors finds: gates, grades, weights, distances, and a verdict for each."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from ppl_gen.judge.measure import Measurements

__all__ = [
    "Assessment",
    "Gate",
    "Grade",
    "Judgement",
    "PredictiveFit",
    "Reason",
    "Thresholds",
    "Verdict",
    "WeightFindings",
]

Array: TypeAlias = NDArray[np.float64]


class Verdict(enum.Enum):
    """What a posterior may be used for, as far as the checks tell."""

    TRUST = "TRUST"
    AFTER_REWEIGHTING = "TRUST AFTER REWEIGHTING"
    MEANS_ONLY = "TRUST THE MEANS ONLY"
    DO_NOT_TRUST = "DO NOT TRUST"
    CANNOT_JUDGE = "CANNOT JUDGE"
    # The best that is said without a reference.
    NO_PROBLEM_FOUND = "NO PROBLEM FOUND BY THESE CHECKS"

    @property
    def is_fine(self) -> bool:
        """Whether the posterior may be used, perhaps reweighted or for its means."""
        return self not in (Verdict.DO_NOT_TRUST, Verdict.CANNOT_JUDGE)


class Grade(enum.Enum):
    """How large an error is, less what chance alone would show."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"
    BLANK = "blank"  # does not apply, or was not computed


@dataclass(frozen=True)
class Thresholds:
    """Where green ends and red begins, and what a reference has to meet.

    Args:
        mean_green: Error of a mean or quantile, in standard deviations of the reference.
        mean_red: The same.
        sd_green: Relative error of a standard deviation.
        sd_red: The same.
        max_rhat: Of a reference.
        min_ess: Of a reference, bulk and tail.
        min_bfmi: Of each chain of a reference.
        max_divergence_share: Share of divergent transitions that a reference may have, where they
            are not gathered in one place.
        sd_unusable: Factor by which a standard deviation may be too small or too large before not
            even the means are trusted.
    """

    # An error of a tenth of a standard deviation is that of the mean of 100 independent draws.
    mean_green: float = 0.1
    # Dhaka et al. (2020), arXiv:2009.00666, and the runs published on posteriordb.
    mean_red: float = 0.3
    sd_green: float = 0.1
    sd_red: float = 0.25
    # Vehtari et al. (2021), arXiv:1903.08008.
    max_rhat: float = 1.01
    min_ess: float = 400.0
    # Betancourt (2016), arXiv:1604.00695.
    min_bfmi: float = 0.3
    max_divergence_share: float = 0.01
    # Mean-field on a bivariate normal passes it where the correlation is beyond .97: where so
    # narrow a guide settles along the ridge is decided by nearly nothing.
    sd_unusable: float = 4.0

    def __post_init__(self) -> None:
        """Refuse thresholds out of order.

        Raises:
            TypeError: If one is no number.
            ValueError: If one is not positive, green ends beyond where red begins, or no chains
                could meet it.
        """
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"thresholds: expected a number as {name}, got {value!r}.")
            if not value > 0:
                raise ValueError(f"thresholds: expected a positive {name}, got {value}.")
        if not self.max_rhat > 1:
            raise ValueError(f"thresholds: expected max_rhat to be above 1, got {self.max_rhat}.")
        for kind in ("mean", "sd"):
            green, red = getattr(self, f"{kind}_green"), getattr(self, f"{kind}_red")
            if green > red:
                raise ValueError(
                    f"thresholds: expected {kind}_green to be at most {kind}_red, got {green} and "
                    f"{red}."
                )


@dataclass(frozen=True)
class Gate:
    """A question that has to be answered before the next one is asked.

    Args:
        method: The posterior that it is about.
        name: "reference", "optimisation", "labels", "draws", ...
        passed: Whether it holds; None where it could not be asked.
        sentence: What was found, with the numbers, in plain words.
        values: The numbers that decided, by name.
        short: Whether it does not hold only because chains are too short, or one alone: longer ones
            may be fine.
    """

    method: str
    name: str
    passed: bool | None
    sentence: str
    values: Mapping[str, float] = field(default_factory=dict)
    short: bool = False


@dataclass(frozen=True)
class Reason:
    """One number that speaks for or against a posterior.

    Args:
        kind: "mean", "sd", "quantile", "joint", "weights", "optimisation", "chains", "stein",
            "monte_carlo", "model".
        quantity: The parameter or the diagnostic, as `tau` or `Pareto k-hat`.
        value: The error or the diagnostic.
        floor: What two samples of one posterior would show; 0 where that is nothing.
        grade: The grade of the value net of its floor.
        sentence: "the sd of tau is 38 % too small".
    """

    kind: str
    quantity: str
    value: float
    floor: float
    grade: Grade
    sentence: str


@dataclass(frozen=True)
class Judgement:
    """The verdict on one posterior.

    Args:
        method: Its name.
        verdict: The verdict.
        sentence: Why, naming the quantity and the size, in one sentence.
        reasons: The numbers that decided, the worst first.
        action: What to do next, as a line of code; empty where nothing is left to do.
        caveats: What else to know: an SVI reference, amber errors, what is too small to be seen.
    """

    method: str
    verdict: Verdict
    sentence: str
    reasons: tuple[Reason, ...] = ()
    action: str = ""
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class WeightFindings:
    """What the importance weights of a guide's draws say.

    Args:
        pareto_k: k-hat.
        interval: Its 90 % interval.
        threshold: The largest k-hat that so many draws can bear.
        ess: Effective sample size of the weighted draws.
        draws: Number of draws.
        log_weights: The logarithms of the largest normalised weights, descending, at most 1,000.
        log_evidence: Estimate of the log evidence by importance sampling, and its standard error;
            NaN where the weights cannot be relied on.
        elbo_gap: Log evidence minus ELBO in nats: the KL divergence from the guide to the
            posterior; where the weights cannot be relied on by the evidence of the reference's
            chains, and NaN where there is none.
    """

    pareto_k: float
    interval: tuple[float, float]
    threshold: float
    ess: float
    draws: int
    log_weights: Array
    log_evidence: tuple[float, float] = (float("nan"), float("nan"))
    elbo_gap: float = float("nan")


@dataclass(frozen=True, eq=False)
class PredictiveFit:
    """How well a posterior predicts the data that it was fitted to: of the model, not the method.

    Args:
        elpd: Expected log predictive density by PSIS-LOO.
        elpd_se: Its standard error.
        p_loo: Effective number of parameters.
        bad_k: Number of observations whose k-hat is above the threshold.
        loo_pit: LOO probability integral transforms by observed site, (observation,).
        p_values: Posterior predictive p-values of mean, sd, minimum, maximum by observed site.
        replicated: Some replicated data by observed site, (replicate, observation).
        observed: The data by observed site, (observation,).
    """

    elpd: float
    elpd_se: float
    p_loo: float
    bad_k: int
    loo_pit: Mapping[str, Array] = field(default_factory=dict)
    p_values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    replicated: Mapping[str, Array] = field(default_factory=dict)
    observed: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Assessment:
    """Everything that judging posteriors of one model found: `to_dict` is all of it as JSON data.

    Args:
        measurements: The numbers by parameter and method.
        reference: Name of the reference; None where there is none.
        judgements: The verdict on each posterior, the reference included, in their order.
        gates: What was asked first, in order.
        distances: One row for each method but the reference: columns `wasserstein`,
            `sliced_wasserstein`, `mmd`, `c2st` (area under the curve of a classifier), each with
            `_floor` (the median of what two samples of one posterior would show), `_upper` (the
            95 % quantile of that), `_excess` (over the floor) and `_p_value`; and `worst_pair`,
            `correlation`, `correlation_of_reference`, `correlation_error`. Empty without a
            reference.
        weights: By method that has a guide with a density.
        fits: How well each predicts the data, where that could be computed.
        histories: The objective's history by method, (step,).
        sample_stats: Of Markov chains, by method and name, (chain, draw): energy, diverging.
        warnings: Those of each posterior's own run, by method.
        not_checked: What was not checked and why, a sentence each.
        thresholds: What it was judged by.
        provenance: Method, options, seed, versions, seconds of each posterior, by method.
        evidence: The log evidence and its standard error by bridge sampling from the chains of the
            reference, by its name: where the importance weights of some guide have none.
    """

    measurements: Measurements
    reference: str | None
    judgements: Mapping[str, Judgement]
    gates: tuple[Gate, ...]
    distances: pd.DataFrame
    weights: Mapping[str, WeightFindings] = field(default_factory=dict)
    fits: Mapping[str, PredictiveFit] = field(default_factory=dict)
    histories: Mapping[str, Array] = field(default_factory=dict)
    sample_stats: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()
    thresholds: Thresholds = Thresholds()
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evidence: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the draws and their statistics as JSON data, in a fixed order.

        What is not a number (NaN, infinite) is None.
        """
        from ppl_gen.judge.plain import assessment_data

        return assessment_data(self)
