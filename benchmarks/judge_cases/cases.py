"""Cases: a target, an approximation and a reference, all of them chosen by one seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from judge_cases import references
from judge_cases.approximations import MAKERS
from judge_cases.distributions import Distribution
from judge_cases.references import Quality, Reference
from judge_cases.truth import Errors, errors, errors_of, weighted_moments
from ppl_gen import Posterior
from ppl_gen.diagnostics.psis import psis

Split: TypeAlias = Literal["development", "held out"]

# Nothing was tuned on the held-out ones.
_SPLITS: tuple[Split, ...] = ("development", "held out")
_REWEIGHTED_DRAWS = 50_000
METHOD, REFERENCE = "guide", "nuts"


@dataclass(frozen=True, eq=False)
class Case:
    """One thing to be judged.

    Args:
        split: Whether the judge's making saw it.
        number: Its number.
        kind: Name of the kind of approximation.
        target: The true posterior.
        approximation: What is judged.
        reference: What it is judged by.
        weighted: Whether the draws come with both log densities.
        draws: Number of draws of the approximation.
    """

    split: Split
    number: int
    kind: str
    target: Distribution
    approximation: Distribution
    reference: Reference
    weighted: bool
    draws: int

    def __str__(self) -> str:
        weights = "with" if self.weighted else "without"
        return (
            f"{self.split} {self.number}: {self.kind} of {type(self.target).__name__}, "
            f"{self.target.dim} parameters, {self.draws} draws {weights} densities; "
            f"reference: {self.reference.name}"
        )

    def posteriors(self) -> dict[str, Posterior]:
        """Return what is judged, and after it the reference if there is one."""
        rng = _generator(self.split, self.number, 1)
        x = self.approximation.sample(rng, self.draws)
        stats = {}
        if self.weighted:
            # Up to a constant: the evidence, which nobody knows.
            log_joint = self.target.log_prob(x) + rng.normal(0, 30)
            stats = {"lp": log_joint[None], "log_q": self.approximation.log_prob(x)[None]}
        guide = references.posterior(x[None], self.target, stats=stats, is_mcmc=False, method="SVI")
        if self.reference.quality is Quality.NONE:
            return {METHOD: guide}
        return {METHOD: guide, REFERENCE: self.reference.posterior(rng, self.target)}

    @property
    def reference_name(self) -> str | None:
        """The name of the reference among the posteriors; None where there is none."""
        return None if self.reference.quality is Quality.NONE else REFERENCE

    @functools.cached_property
    def errors(self) -> Errors:
        """The exact errors of the approximation."""
        return errors_of(self.approximation, self.target)

    @functools.cached_property
    def reweighted_errors(self) -> Errors:
        """The errors that are left after reweighting very many draws."""
        rng = _generator(self.split, self.number, 2)
        x = self.approximation.sample(rng, _REWEIGHTED_DRAWS)
        ratios = self.target.log_prob(x) - self.approximation.log_prob(x)
        return errors(weighted_moments(x, psis(ratios).log_weights), self.target.moments)


def generate(split: Split, number: int) -> Case:
    """Return a case by its number.

    Args:
        split: Either the cases that the judge may be tuned on, or those held out.
        number: From 0. The kinds take turns.
    """
    rng = _generator(split, number, 0)
    maker = MAKERS[number % len(MAKERS)]
    target, approximation = maker(rng)
    reference = references.choose(rng, target)
    return Case(
        split,
        number,
        maker.__name__.replace("_", " "),
        target,
        approximation,
        reference,
        # Without a reference the densities are all there is to judge by.
        bool(rng.random() < 0.7) or reference.quality is Quality.NONE,
        int(rng.choice([1000, 2000, 4000])),
    )


def _generator(split: Split, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([20_26, _SPLITS.index(split), number, stream])
