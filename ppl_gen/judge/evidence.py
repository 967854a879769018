"""What was found of one posterior, and what it comes to before a verdict is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppl_gen.core.posterior import Posterior
from ppl_gen.diagnostics.two_samples import Distance
from ppl_gen.judge.errors import Errors
from ppl_gen.judge.findings import Gate, Grade, Judgement, Reason, Thresholds, Verdict
from ppl_gen.judge.joint import Dependence
from ppl_gen.judge.short_chains import ShortChains
from ppl_gen.judge.weights import Weights

__all__ = ["Evidence", "sentence"]

Flags: TypeAlias = NDArray[np.bool_]

# Where neither the sd nor the tails can be told from chance to within so many times what is red,
# nothing is said; to within less, a caveat says what cannot be seen.
_BLIND_SPREAD = 1.5


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that was found of one posterior.

    Args:
        name: Its name.
        posterior: The posterior.
        parameters: Names of the scalars.
        thresholds: Where green ends and red begins.
        gates: What was asked of it first, by name: "optimisation", "chains".
        auxiliary: Which scalars only serve to make others, (scalar,).
        jointly: Names of the scalars that are looked at jointly.
        max_rhat: The largest R-hat of its chains; NaN for others.
        weights: Of its guide's draws.
        bridge: The log evidence and its standard error, by the chains of the reference.
        errors: Of its marginals against the reference; None where there is none.
        doubtful: The same with floors that allow for chains which do not agree, where the
            reference failed its gate.
        dependence: Its worst error of a dependence.
        classifier: How well a classifier tells it from the reference.
        weighted_errors: Errors of the weighted draws against the reference.
        weighted_dependence: Their worst error of a dependence.
        own_errors: Errors of its marginals against its own weighted draws.
        chains: What short Markov chains from it found.
    """

    name: str
    posterior: Posterior
    parameters: Sequence[str]
    thresholds: Thresholds
    gates: Mapping[str, Gate] = field(default_factory=dict)
    auxiliary: Flags | None = None
    jointly: Sequence[str] = ()
    max_rhat: float = float("nan")
    weights: Weights | None = None
    bridge: tuple[float, float] | None = None
    errors: Errors | None = None
    doubtful: Errors | None = None
    dependence: Dependence | None = None
    classifier: Distance | None = None
    weighted_errors: Errors | None = None
    weighted_dependence: Dependence | None = None
    own_errors: Errors | None = None
    chains: ShortChains | None = None

    @property
    def is_point(self) -> bool:
        """Whether it is judged by its location alone."""
        return self.posterior.is_point

    @property
    def ended(self) -> bool | None:
        """Whether its optimisation came to its end, as far as is known."""
        gate = self.gates.get("optimisation")
        return None if gate is None else gate.passed

    def counted(self, errors: Errors) -> Errors:
        """Return those of the errors that count: of a point those of its location.

        Args:
            errors: Of all scalars.
        """
        if self.auxiliary is not None:
            errors = errors.without(self.auxiliary)
        return errors.only(("mean", "q50")) if self.is_point else errors

    def mended(self) -> Grade | None:
        """Return the worst grade of the weighted draws; None where they cannot be relied on."""
        if self.weights is None or not self.weights.can_mend or self.weighted_errors is None:
            return None
        errors = self.counted(self.weighted_errors)
        if blind_location(errors).any() or blind_spread(errors).any():
            return None
        worst = int(np.where(errors.code == 3, 0, errors.code).max(initial=0))
        # Red as it is, it may be chance's, or not.
        worst = max(worst, int(beyond_red(errors).any()))
        if self.weighted_dependence is not None:
            size = abs(self.weighted_dependence.net)
            limits = (self.thresholds.sd_green, self.thresholds.sd_red)
            worst = max(worst, sum(size > limit for limit in limits))
        return (Grade.GREEN, Grade.AMBER, Grade.RED)[worst]

    def spread_unusable(self, errors: Errors) -> bool:
        """Return whether a spread is so far off that not even the means are trusted.

        Args:
            errors: Those that count.
        """
        if self.is_point:
            return False
        factor = self.thresholds.sd_unusable
        ratio = 1.0 + np.where(errors.code[1] == 3, 0.0, np.nan_to_num(errors.net[1]))
        return bool((ratio < 1 / factor).any() or (ratio > factor).any())

    def judgement(
        self,
        verdict: Verdict,
        text: str,
        action: str,
        reasons: Sequence[Reason],
        caveats: Sequence[str] = (),
    ) -> Judgement:
        """Return a judgement of this posterior.

        Args:
            verdict: The verdict.
            text: Why, as a clause or a sentence.
            action: What to do next.
            reasons: The numbers that decided, the worst first.
            caveats: What else to know.
        """
        return Judgement(self.name, verdict, sentence(text), tuple(reasons), action, tuple(caveats))


def sentence(text: str) -> str:
    """Return a clause as a sentence.

    Args:
        text: The clause.

    Example:
        >>> sentence("the sd of tau is 38 % too small")
        'The sd of tau is 38 % too small.'
    """
    text = f"{text[:1].upper()}{text[1:]}".strip()
    return text if text.endswith(".") else f"{text}."


def red_location(errors: Errors) -> bool:
    """Return whether a mean is red, or a median where there is no mean."""
    return bool((errors.code[0] == 2).any() or (errors.code[3, errors.by_quantiles] == 2).any())


def beyond_red(errors: Errors) -> NDArray[np.bool_]:
    """Return which errors are beyond red as they are, but not net of chance, (kind, scalar)."""
    size = np.nan_to_num(np.abs(errors.error), nan=0.0)
    return np.asarray((errors.code < 2) & (size > errors.limits[:, 1:]))


def blind_location(errors: Errors) -> Flags:
    """Return of which scalars the mean, or the median where there is none, cannot be told."""
    return np.asarray(np.where(errors.by_quantiles, errors.blind[3], errors.blind[0]))


def blind_spread(errors: Errors) -> Flags:
    """Return of which scalars neither sd nor tails can be told from chance."""
    close = errors.floor <= _BLIND_SPREAD * errors.limits[:, 1:]
    known = (errors.code != 3) & close
    judged = (errors.code[[1, 2, 4]] != 3).any(axis=0)
    return np.asarray(judged & ~known[1] & ~known[[2, 4]].all(axis=0))
