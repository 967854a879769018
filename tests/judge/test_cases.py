"""The cases that the judge is judged by: their truth is exact, and the judge gets them right."""

import dataclasses
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppl_gen.diagnostics import ess_bulk
from ppl_gen.judge import Thresholds, assess

FOLDER = Path(__file__).parents[2] / "benchmarks"
# Cases taken through the judge: each kind of approximation comes up once.
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 9, 10, 13, 14, 16, 17, 19, 22, 24, 26)


@pytest.fixture(scope="module", autouse=True)
def _judge_cases() -> Iterator[None]:
    """Let the folder of benchmarks be imported from."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def test_the_marginals_have_their_known_moments() -> None:
    from judge_cases import marginals

    # TRUTH of Giordano et al. (2018), by quadrature: variance of the target, then of the best
    # normal and of the normal of the curvature.
    for marginal, mean, variance, best, curved in (
        (marginals.skewed_mixture(), 1.25, 2.8958, (1.3557, 2.5497), (0.1115, 0.8492)),
        (marginals.wide_mixture(), 0.0, 4.2222, (0.0, 4.1702), (0.0, 1.1065)),
    ):
        assert marginal.mean == pytest.approx(mean, abs=1e-4)
        assert marginal.sd**2 == pytest.approx(variance, abs=1e-4)
        for found, (its_mean, its_variance) in (
            (marginals.variational_optimum_of(marginal), best),
            (marginals.laplace_of(marginal), curved),
        ):
            assert found.mean == pytest.approx(its_mean, abs=2e-3)
            assert found.sd**2 == pytest.approx(its_variance, abs=2e-3)


def test_eight_schools_has_its_known_moments() -> None:
    from judge_cases.hierarchies import EightSchools

    schools = EightSchools()
    assert schools.log_evidence == pytest.approx(-31.31135, abs=1e-3)
    # Means of 200,000 draws in mirrored pairs have an error below .003 sd; sds of tau, with a
    # kurtosis of about 30, one of sqrt(29 / 4 / 200,000) = .6 %. Three of them.
    exact = {0: (4.3968, 3.3177), 1: (3.5977, 3.2200), 2: (6.2119, 5.5931), 9: (4.8543, 5.2908)}
    for index, (mean, sd) in exact.items():
        assert schools.moments.mean[index] == pytest.approx(mean, abs=0.01 * sd)
        assert schools.moments.sd[index] == pytest.approx(sd, rel=0.02)
    assert schools.moments.quantiles[:, 1] == pytest.approx([0.246, 2.749, 9.841], rel=0.03)


def test_a_mean_field_optimum_has_the_known_errors() -> None:
    from judge_cases.distributions import Copula
    from judge_cases.marginals import Normal
    from judge_cases.truth import errors_of

    r = 0.9
    target = Copula([Normal(), Normal()], np.array([[1, r], [r, 1]]))
    narrow = Copula([Normal(0.0, math.sqrt(1 - r**2))] * 2)
    found = errors_of(narrow, target)
    assert found.sd == pytest.approx(1 - 0.4359, abs=1e-4)
    assert found.mean == pytest.approx(0.0, abs=1e-12)
    # The difference of both has the sd sqrt(1 - r) of what it would have without correlation.
    assert found.joint == pytest.approx(1 / math.sqrt(1 - r) - 1, abs=1e-6)


@pytest.fixture(scope="module")
def distributions(_judge_cases: None) -> list[tuple[str, Any]]:
    """Return targets and approximations of each kind, below six parameters."""
    from judge_cases import generate

    found = []
    for number in range(60):
        case = generate("development", number)
        for part in {id(d): d for d in (case.target, case.approximation)}.values():
            if part.dim <= 5 or part.noise == 10:
                found.append((f"{case}, {type(part).__name__}", part))
    assert len({type(part) for _, part in found}) == 7
    return found


def test_densities_are_those_of_the_draws(distributions: list[tuple[str, Any]]) -> None:
    # Draws are a smooth function of standard normals: log p(x(z)) = log N(z) - log |dx/dz|. By
    # differences over 0.02, ten steps of the grid that tabulated marginals stand on.
    for name, part in distributions:
        if part.noise != part.dim:
            continue
        z = 0.7 * np.random.default_rng(1).normal(size=part.noise)
        step = 0.01 * np.eye(part.noise)
        jacobian = (part.transform(z + step) - part.transform(z - step)) / 0.02
        expected = -(z @ z + part.noise * math.log(2 * math.pi)) / 2
        expected -= np.linalg.slogdet(jacobian)[1]
        found = float(part.log_prob(part.transform(z[None]))[0])
        assert found == pytest.approx(expected, abs=0.02), name


def test_moments_are_those_of_the_draws(distributions: list[tuple[str, Any]]) -> None:
    from judge_cases.distributions import moments_of

    draws = 40_000
    for name, part in distributions:
        x = part.sample(np.random.default_rng(2), draws)
        found, exact = moments_of(x), part.moments
        # A mean has the standard error sd / 200, a quantile at most sqrt(.05 * .95) / density / 200
        # = .011 sd of a normal: five of them. Heavy tails have wider outer quantiles still.
        assert np.abs((found.mean - exact.mean) / exact.sd).max() < 0.025, name
        assert np.abs((found.quantiles - exact.quantiles) / exact.sd).max() < 0.08, name
        fourth = (((x - exact.mean) / exact.sd) ** 4).mean(axis=0)
        light = fourth < 8  # else the error of an sd cannot be told from the draws
        # sqrt((8 - 1) / 4 / 40,000) = .0066, five of them.
        assert np.abs(found.sd / exact.sd - 1)[light].max(initial=0.0) < 0.033, name
        both = np.tile(light, 2)
        apart = np.abs(found.correlation - exact.correlation)[np.ix_(both, both)]
        # An error of sqrt(7) / 200 = .013 for features of that kurtosis.
        assert apart.max(initial=0.0) < 0.07, name


def test_chains_are_worth_the_draws_that_they_are_said_to_be() -> None:
    from judge_cases.distributions import Copula
    from judge_cases.marginals import Normal
    from judge_cases.references import Quality, Reference

    target = Copula([Normal()] * 20)
    drawn = Reference("chains", Quality.GOOD, ess=1000.0).sample(np.random.default_rng(3), target)
    # An estimate of ESS has a relative error of about 15 % here; the mean of twenty one of 3.5 %.
    assert ess_bulk(drawn).mean() == pytest.approx(1000, rel=0.15)
    assert drawn.mean() == pytest.approx(0.0, abs=4 / math.sqrt(20 * 1000))
    assert drawn.std() == pytest.approx(1.0, abs=0.03)


def test_outcomes_tell_trust_from_alarm() -> None:
    from judge_cases import Outcome, generate, outcome_of
    from judge_cases.references import Quality, Reference
    from judge_cases.truth import Errors, Label

    from ppl_gen.judge import Verdict

    def of(**errors: float) -> Errors:
        return Errors(**(dict.fromkeys(("mean", "sd", "median", "tail", "joint"), 0.0) | errors))

    assert of().label() is Label.RIGHT
    assert of(sd=0.15).label() is Label.FAIR
    assert of(mean=0.3).label() is Label.NEAR
    assert of(sd=0.5, mean=0.1).label() is Label.MEANS_ONLY
    assert of(mean=0.5).label() is Label.WRONG
    reference = Reference("independent draws", Quality.GOOD)
    case = dataclasses.replace(generate("development", 0), reference=reference)
    assert case.kind == "correct"
    case.__dict__["errors"] = of(sd=0.5, mean=0.1)
    assert outcome_of(case, Verdict.TRUST) is Outcome.FALSE_TRUST
    assert outcome_of(case, Verdict.MEANS_ONLY) is Outcome.RIGHT
    assert outcome_of(case, Verdict.DO_NOT_TRUST) is Outcome.TOO_STRICT
    case.__dict__["errors"] = of(mean=0.5)
    assert outcome_of(case, Verdict.MEANS_ONLY) is Outcome.FALSE_TRUST
    assert outcome_of(case, Verdict.DO_NOT_TRUST) is Outcome.RIGHT
    case.__dict__["errors"] = of()
    assert outcome_of(case, Verdict.DO_NOT_TRUST) is Outcome.FALSE_ALARM
    assert outcome_of(case, Verdict.TRUST) is Outcome.RIGHT


def test_a_judge_with_wrong_thresholds_is_found_out() -> None:
    from judge_cases import Label, Outcome, generate, outcome_of
    from judge_cases.references import Quality

    lenient = Thresholds(mean_green=5.0, mean_red=6.0, sd_green=5.0, sd_red=6.0, sd_unusable=100.0)
    case = next(
        case
        for case in (generate("development", number) for number in range(100))
        if case.kind == "shifted"
        and case.reference.quality is Quality.GOOD
        and not case.weighted
        and case.errors.label() is Label.WRONG
    )
    for thresholds, expected in ((Thresholds(), Outcome.RIGHT), (lenient, Outcome.FALSE_TRUST)):
        found = assess(case.posteriors(), case.reference_name, thresholds=thresholds)
        assert outcome_of(case, found.judgements["guide"].verdict) is expected


def test_the_cases_below_are_one_of_each_kind() -> None:
    from judge_cases.approximations import MAKERS

    assert [MAKERS.index(maker) for maker in dict.fromkeys(MAKERS)] == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_case_of_each_kind(number: int) -> None:
    from judge_cases import Outcome, generate, outcome_of

    case = generate("development", number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = assess(case.posteriors(), case.reference_name, seed=number)
    judgement = found.judgements["guide"]
    outcome = outcome_of(case, judgement.verdict)
    said = f"{case}: {judgement.verdict.value}, {judgement.sentence}"
    assert outcome not in (Outcome.FALSE_TRUST, Outcome.FALSE_ALARM), said
