"""Verdicts on posteriors that are right, and on those made wrong in a known way."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from made import Array, guide, normal, posterior

from ppl_gen.core import Posterior
from ppl_gen.judge import Assessment, Grade, Thresholds, Verdict, assess
from ppl_gen.judge.errors import Errors, limits
from ppl_gen.judge.evidence import Evidence
from ppl_gen.judge.weights import weights_of


def judged(approximation: Posterior, reference: Posterior, **options: object) -> Assessment:
    return assess({"svi": approximation, "nuts": reference}, **options)  # type: ignore[arg-type]


def truncated(draws: Array) -> Array:
    return draws[np.abs(draws).max(axis=1) < 1.2][:600]


def bent(draws: Array) -> Array:
    """Make the second scalar grow with the size of the first: margins and correlation are kept."""
    result = draws.copy()
    order = np.argsort(np.argsort(np.abs(draws[:, 0]) + 0.3 * draws[:, 1]))
    result[:, 1] = np.sort(draws[:, 1])[order]
    return result


# With 4,000 independent draws on both sides the standard error of a mean is .022 sd and that of an
# sd 1.6 %; floors of 15 errors at once are 3 of these. Errors below are by more than that away from
# the thresholds of .3 sd and 25 %.
CASES: dict[str, tuple[Callable[[Array], Array], Verdict, str]] = {
    "right": (lambda d: d, Verdict.TRUST, r"means are within 0.0\d+ sd"),
    "narrow": (lambda d: 0.6 * d, Verdict.MEANS_ONLY, r"the sd of x\d is [34]\d % too small"),
    "wide": (lambda d: 1.6 * d, Verdict.MEANS_ONLY, r"the sd of x\d is [56]\d % too large"),
    "a bit narrow": (lambda d: 0.85 * d, Verdict.TRUST, "sds within 1[3-7] %"),
    "shifted": (
        lambda d: d + np.array([0.8, 0, 0]),
        Verdict.DO_NOT_TRUST,
        r"the mean of x0 is 0\.[78]\d* sd too large",
    ),
    "a bit shifted": (lambda d: d - 0.2, Verdict.TRUST, r"means are within 0\.2"),
    "shifted and narrow": (
        lambda d: 0.5 * d - 1,
        Verdict.DO_NOT_TRUST,
        r"mean of x\d is (1|0\.9\d) sd too small",
    ),
    "a hundredth as wide": (lambda d: 0.01 * d, Verdict.DO_NOT_TRUST, "99.0 % too small"),
    "twenty times as wide": (lambda d: 20 * d, Verdict.DO_NOT_TRUST, "times too large"),
    "truncated": (truncated, Verdict.MEANS_ONLY, r"the sd of x\d is [34]\d % too small"),
    "bent": (bent, Verdict.MEANS_ONLY, "the correlation of the size of x0 and x1 is 0.[89]"),
}


@pytest.mark.parametrize("case", CASES)
def test_constructed_errors(case: str) -> None:
    change, expected, words = CASES[case]
    found = judged(guide(change(normal(1))), posterior(normal(2))).judgements["svi"]
    assert found.verdict is expected, found.sentence
    plain = re.sub(r"\[(\d)\]", r"\1", found.sentence)
    assert re.search(words, plain, re.IGNORECASE), found.sentence
    assert bool(found.action) is (expected is not Verdict.TRUST)


def test_marginals_right_and_the_joint_wrong() -> None:
    reference = posterior(normal(3, correlation=0.8))
    found = judged(guide(normal(4)), reference).judgements["svi"]
    assert found.verdict is Verdict.MEANS_ONLY
    assert re.search(
        r"the correlation of x\[0\] and x\[1\] is -?0.0\d, and 0.8\d? in nuts", found.sentence
    )
    # Negative control: with the right correlation there is nothing to say.
    right = judged(guide(normal(4, correlation=0.8)), reference).judgements["svi"]
    assert right.verdict is Verdict.TRUST


def test_one_mode_only() -> None:
    generator = np.random.default_rng(5)
    centres = np.where(generator.random(4000) < 0.7, -3.0, 3.0)
    both = (centres + generator.normal(size=4000))[:, None]
    found = judged(guide(generator.normal(size=(4000, 1)) - 3), posterior(both))
    assert found.judgements["svi"].verdict is Verdict.DO_NOT_TRUST
    # Mean -1.2 and sd 2.93 in truth: the mode is .61 sd below.
    assert re.search(r"mean of x\[0\] is 0.6\d? sd too small", found.judgements["svi"].sentence)


def test_heavy_tails_are_judged_by_quantiles_and_said_so() -> None:
    generator = np.random.default_rng(6)
    cauchy = [generator.standard_cauchy((4000, 2)) for _ in range(3)]
    reference = posterior(cauchy[0])
    right = judged(guide(cauchy[1]), reference)
    assert right.measurements.heavy_tailed == ("x[0]", "x[1]")
    assert right.judgements["svi"].verdict is Verdict.TRUST
    assert "judged by quantiles" in " ".join(right.judgements["svi"].caveats)
    # The unit is 6.31 / 1.645 = 3.84: a shift by 3 is .78 of it, far above a floor of .03.
    shifted = judged(guide(cauchy[2] + 3), reference).judgements["svi"]
    assert shifted.verdict is Verdict.DO_NOT_TRUST
    narrow = judged(guide(normal(7, 2)), reference).judgements["svi"]
    assert narrow.verdict is Verdict.MEANS_ONLY
    assert "5 % quantile" in narrow.sentence


def test_an_approximation_with_heavy_tails_is_not_excused_by_them() -> None:
    draws = np.random.default_rng(8).standard_cauchy((4000, 3))
    found = judged(guide(draws), posterior(normal(9))).judgements["svi"]
    assert found.verdict is Verdict.DO_NOT_TRUST


def test_too_few_draws_to_tell() -> None:
    # 50 draws: the floor of a mean is 3 / sqrt(50) = .4 sd, above where red begins.
    found = judged(guide(normal(10, draws=50)), posterior(normal(11))).judgements["svi"]
    assert found.verdict is Verdict.CANNOT_JUDGE
    assert re.search(r"an error of the mean of x\[.\] below 0.[34]\d* sd", found.sentence)
    # An error beyond that is told all the same.
    far = judged(guide(normal(10, draws=50) + 2), posterior(normal(11))).judgements["svi"]
    assert far.verdict is Verdict.DO_NOT_TRUST


def test_what_is_too_small_to_be_seen_is_said() -> None:
    found = judged(guide(normal(12, draws=600)), posterior(normal(13))).judgements["svi"]
    assert found.verdict is Verdict.TRUST
    # 3 sqrt(1 / 600 + 1 / 4000) = .13
    assert any("errors of a mean below 0.1" in caveat for caveat in found.caveats)


def test_thresholds_can_be_set() -> None:
    narrow, reference = guide(0.85 * normal(14)), posterior(normal(15))
    strict = Thresholds(sd_green=0.05, sd_red=0.1)
    assert judged(narrow, reference).judgements["svi"].verdict is Verdict.TRUST
    found = judged(narrow, reference, thresholds=strict)
    assert found.judgements["svi"].verdict is Verdict.MEANS_ONLY
    assert found.thresholds == strict
    with pytest.raises(ValueError, match="mean_green to be at most mean_red, got"):
        Thresholds(mean_green=0.5)
    with pytest.raises(ValueError, match="expected a positive min_ess, got 0"):
        Thresholds(min_ess=0)
    with pytest.raises(ValueError, match=r"expected max_rhat to be above 1, got 0\.9"):
        Thresholds(max_rhat=0.9)
    text: Any = "0.2"
    with pytest.raises(TypeError, match=r"expected a number as mean_red, got '0\.2'"):
        Thresholds(mean_red=text)


def test_reasons_are_graded_the_worst_first() -> None:
    draws = normal(16) * np.array([1.0, 0.85, 0.5])
    found = judged(guide(draws), posterior(normal(17))).judgements["svi"]
    marginal = [reason for reason in found.reasons if reason.kind in ("mean", "sd", "quantile")]
    assert [reason.quantity for reason in marginal[:2]] == ["x[2]", "x[1]"]
    assert [reason.grade for reason in marginal[:2]] == [Grade.RED, Grade.AMBER]
    # An sd of half the size, to within its standard error of 1.6 % four times.
    assert marginal[0].value == pytest.approx(-0.5, abs=0.064)
    assert 0 < marginal[0].floor < 0.1


def test_the_best_of_equals_is_trusted_at_the_stated_rate() -> None:
    # A false alarm takes an error of .3 sd beyond a floor of three standard errors: it never
    # happens to samples of one posterior. Amber errors may not either.
    for seed in range(5):
        found = judged(guide(normal(100 + seed, draws=1000)), posterior(normal(200 + seed)))
        judgement = found.judgements["svi"]
        assert judgement.verdict is Verdict.TRUST
        assert not any("not negligible" in caveat for caveat in judgement.caveats)


def test_what_may_be_chance_is_mended_by_weights_all_the_same() -> None:
    """An sd 26 % too large by 400 draws: its standard error is 3.5 %, and the floor about 10 %.

    It is red as it is, and amber net of chance. The weighted draws have no such error.
    """
    noise, target = (normal(seed, scalars=1, draws=size) for seed, size in ((18, 400), (19, 4000)))
    approximation = guide(1.26 * (noise - noise.mean()) / noise.std())
    x = approximation["x"][..., 0]
    stats = {"lp": -0.5 * x**2, "log_q": -0.5 * (x / 1.26) ** 2 - math.log(1.26)}
    reference = posterior((target - target.mean()) / target.std())
    undecided = judged(approximation, reference).judgements["svi"]
    assert undecided.verdict is Verdict.CANNOT_JUDGE, undecided.sentence
    assert "too large, which chance may account for" in undecided.sentence
    weighed = dataclasses.replace(approximation, sample_stats=stats)
    found = judged(weighed, reference).judgements["svi"]
    assert found.verdict is Verdict.AFTER_REWEIGHTING, found.sentence
    assert "which reweighting mends, if it is not chance's" in found.sentence
    assert found.action == "svi = svi.reweight()"


@pytest.mark.parametrize(("error", "grade"), [(0.24, Grade.GREEN), (0.27, Grade.AMBER)])
def test_weighted_draws_that_are_red_as_they_are_mend_nothing(error: float, grade: Grade) -> None:
    """An sd that is 27 % off with a floor of 26 %: what is left of it is green, and says little."""
    x = 1.2 * normal(50, scalars=1)
    stats = {"lp": -0.5 * x**2, "log_q": -0.5 * (x / 1.2) ** 2 - math.log(1.2)}
    weighed = guide(
        x, sample_stats={n: torch.from_numpy(v.reshape(1, -1)) for n, v in stats.items()}
    )
    errors, floors = np.zeros((5, 1)), np.full((5, 1), 0.05)
    errors[1], floors[1] = error, 0.26
    net = np.where(errors > 0, 0.05, 0.0)
    found = Errors(
        errors,
        floors,
        net,
        np.zeros((5, 1), dtype=np.int8),
        np.ones(1),
        np.zeros(1, dtype=bool),
        limits(Thresholds()),
    )
    weights = weights_of(weighed, 0, alone=False)
    assert weights.can_mend
    evidence = Evidence(
        "svi", weighed, ["x[0]"], Thresholds(), weights=weights, weighted_errors=found
    )
    assert evidence.mended() is grade
