"""Posteriors, approximations and references whose errors are known, to judge the judge by."""

from judge_cases.cases import Case, generate
from judge_cases.outcomes import Outcome, outcome_of
from judge_cases.truth import Errors, Label

__all__ = ["Case", "Errors", "Label", "Outcome", "generate", "outcome_of"]
