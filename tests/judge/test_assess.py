"""Gates, references that are not good enough, and whatever else may be given."""

import ast
import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from made import guide, normal, posterior
from scipy.signal import lfilter

from ppl_gen.core import Posterior
from ppl_gen.core.errors import SiteError
from ppl_gen.judge import Verdict, assess


def verdicts(posteriors: dict[str, Posterior], reference: str | None = None) -> dict[str, Verdict]:
    found = assess(posteriors, reference)
    json.dumps(found.to_dict(), allow_nan=False)
    return {name: judgement.verdict for name, judgement in found.judgements.items()}


def with_stats(seed: int, **stats: torch.Tensor) -> Posterior:
    return dataclasses.replace(posterior(normal(seed)), sample_stats=stats)


def test_the_reference_is_the_first_markov_chain() -> None:
    found = assess({"a": guide(normal(0)), "b": posterior(normal(1)), "c": posterior(normal(2))})
    assert found.reference == "b"
    assert found.judgements["b"].verdict is Verdict.NO_PROBLEM_FOUND
    assert found.judgements["c"].verdict is Verdict.TRUST
    assert assess({"b": posterior(normal(1))}).reference is None


def test_a_reference_that_is_too_short() -> None:
    short, approximation = posterior(normal(3, draws=80)), guide(normal(4))
    found = assess({"nuts": short, "svi": approximation})
    # They are independent draws, only too few.
    assert found.judgements["nuts"].verdict is Verdict.CANNOT_JUDGE
    assert "too short" in found.judgements["nuts"].sentence
    ast.parse(found.judgements["nuts"].action)
    judgement = found.judgements["svi"]
    assert judgement.verdict is Verdict.CANNOT_JUDGE
    assert "effective sample size of x[" in judgement.sentence
    assert judgement.action.startswith("nuts = ")
    # An error far beyond what so few draws can be off by is told.
    far = assess({"nuts": short, "svi": guide(normal(4) + 5)}).judgements["svi"]
    assert far.verdict is Verdict.DO_NOT_TRUST
    assert "far beyond what the doubts about nuts can explain" in far.sentence


def test_chains_that_are_only_too_short_can_go_on() -> None:
    """Their R-hat is fine or may be chance's: nothing speaks against them but their length."""
    few = posterior(normal(40, draws=280), checkpoint={"position": torch.zeros(4, 3)})
    found = assess({"nuts": few}).judgements["nuts"]
    assert found.verdict is Verdict.CANNOT_JUDGE
    assert re.search(r"effective sample size of x\[\d\] is \d+, below 400", found.sentence)
    assert re.fullmatch(r"nuts = nuts\.extend\(\d+\)", found.action)
    # Negative controls: energies, divergences and chains that disagree are more than that.
    flags = torch.rand(4, 70, generator=torch.Generator().manual_seed(0)) < 0.1
    diverging = dataclasses.replace(few, sample_stats={"diverging": flags})
    assert verdicts({"nuts": diverging}) == {"nuts": Verdict.DO_NOT_TRUST}
    apart = dataclasses.replace(few, draws={"x": few["x"].clone()})
    apart["x"][3] += 3.0
    assert verdicts({"nuts": apart}) == {"nuts": Verdict.DO_NOT_TRUST}
    stuck = posterior(np.repeat(np.arange(4.0), 100)[:, None] * np.ones(3))
    assert verdicts({"nuts": stuck}) == {"nuts": Verdict.DO_NOT_TRUST}


def test_a_single_chain_has_nothing_to_agree_with() -> None:
    found = assess({"nuts": posterior(normal(41), 1)}).judgements["nuts"]
    assert found.verdict is Verdict.CANNOT_JUDGE
    assert "single chain" in found.sentence
    assert found.action == "nuts = pg.fit(pair, data, NUTS(chains=4))"
    tiny = assess({"nuts": posterior(normal(42, draws=8))}).judgements["nuts"]
    assert tiny.verdict is Verdict.CANNOT_JUDGE
    assert "too few draws for R-hat" in tiny.sentence


def test_many_short_chains_are_judged_by_the_nested_r_hat() -> None:
    """Of 64 chains of 40 draws, each a step of an autoregression of .5 after the other."""
    noise = np.random.default_rng(43).normal(size=(64, 40, 2))
    draws = lfilter([1.0], [1.0, -0.5], noise, axis=1) * 0.75**0.5
    found = assess({"nuts": posterior(draws.reshape(-1, 2), 64)})
    judgement = found.judgements["nuts"]
    assert judgement.verdict is Verdict.NO_PROBLEM_FOUND, judgement.sentence
    assert "nested R-hat at most 1.00" in judgement.sentence
    # Negative control: chains that are where they have started.
    slow = lfilter([1.0], [1.0, -0.99], noise, axis=1) / 5
    found = assess({"nuts": posterior(slow.reshape(-1, 2), 64)})
    assert found.judgements["nuts"].verdict is Verdict.DO_NOT_TRUST


def test_a_reference_whose_chains_do_not_agree() -> None:
    apart = posterior(normal(5))
    apart["x"][3] += 3.0
    # The chains' means are 0, 0, 0 and 3: nothing within their reach is an error.
    found = verdicts({"nuts": apart, "svi": guide(normal(6)), "far": guide(normal(7) + 1)})
    assert found == {
        "nuts": Verdict.DO_NOT_TRUST,
        "svi": Verdict.CANNOT_JUDGE,
        "far": Verdict.CANNOT_JUDGE,
    }


def test_divergences_rare_and_anywhere_or_gathered() -> None:
    flags = torch.zeros(4, 1000, dtype=torch.bool)
    flags[0, 17] = flags[2, 500] = flags[3, 900] = True
    few = with_stats(8, diverging=flags)
    assert verdicts({"nuts": few, "svi": guide(normal(9))})["svi"] is Verdict.TRUST
    corner = few["x"][:, :, 0] < -2.4
    gathered = dataclasses.replace(few, sample_stats={"diverging": corner})
    found = assess({"nuts": gathered, "svi": guide(normal(9))})
    assert 0 < int(corner.sum()) <= 40  # fewer than one in a hundred
    assert found.judgements["svi"].verdict is Verdict.CANNOT_JUDGE
    assert "gathered where values of x[0] are small" in found.judgements["nuts"].sentence
    assert "target_accept" in found.judgements["nuts"].action
    many = torch.rand(4, 1000, generator=torch.Generator().manual_seed(0)) < 0.03
    found = assess({"nuts": with_stats(8, diverging=many)})
    assert found.judgements["nuts"].verdict is Verdict.DO_NOT_TRUST


def test_low_energy_information() -> None:
    steps = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slow = with_stats(10, energy=steps.cumsum(1))
    found = assess({"nuts": slow, "svi": guide(normal(11))})
    assert found.judgements["svi"].verdict is Verdict.CANNOT_JUDGE
    assert "E-BFMI is 0.0" in found.judgements["nuts"].sentence


def test_an_approximation_as_the_reference_is_said_in_every_verdict() -> None:
    posteriors = {"a": guide(normal(12)), "b": guide(normal(13)), "c": guide(0.5 * normal(14))}
    found = assess(posteriors, "a")
    assert found.judgements["b"].verdict is Verdict.TRUST
    assert found.judgements["c"].verdict is Verdict.MEANS_ONLY
    for name in "bc":
        assert "judged against a, an approximation itself" in found.judgements[name].sentence
        # It has no weights and no pair: its own card is that nothing is known of it.
        assert any("Its own checks: CANNOT JUDGE" in c for c in found.judgements[name].caveats)
    assert found.judgements["a"].verdict is Verdict.CANNOT_JUDGE


def test_without_a_reference_nothing_better_than_no_problem_found() -> None:
    found = verdicts({"a": guide(normal(15)), "b": guide(normal(16))})
    assert set(found.values()) == {Verdict.CANNOT_JUDGE}
    assert verdicts({"nuts": posterior(normal(17))}) == {"nuts": Verdict.NO_PROBLEM_FOUND}


def test_chains_that_do_not_agree_are_not_trusted_for_being_near() -> None:
    apart = posterior(normal(18, scalars=1))
    apart["x"][:] += 0.4 * torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None, None]
    found = assess({"nuts": posterior(normal(19, scalars=1)), "other": apart}).judgements["other"]
    assert found.verdict is Verdict.CANNOT_JUDGE
    assert "chains do not agree" in found.sentence


def point(value: float, **options: Any) -> Posterior:
    draws = torch.full((1, 1, 3), value, dtype=torch.float64)
    return Posterior(draws={"x": draws}, latents=("x",), is_mcmc=False, **options)


def test_points_are_judged_by_their_location_alone() -> None:
    found = verdicts({"nuts": posterior(normal(20)), "near": point(0.0), "far": point(1.0)})
    assert found["near"] is Verdict.MEANS_ONLY
    assert found["far"] is Verdict.DO_NOT_TRUST
    assert verdicts({"map": point(0.0)}) == {"map": Verdict.CANNOT_JUDGE}


def test_a_single_draw_of_a_guide_is_no_point() -> None:
    """It may be anywhere: near the mean it says nothing for the method."""
    facts = {"method": "SVI", "options": {"guide": "mean_field"}}
    found = assess({"nuts": posterior(normal(20)), "one": point(0.0, provenance=facts)})
    assert found.judgements["one"].verdict is Verdict.CANNOT_JUDGE
    assert "a single draw" in found.judgements["one"].sentence
    assert found.judgements["one"].action == ('one = pg.fit(pair, data, SVI(guide="mean_field"))')
    facts = {"method": "SVI", "options": {"guide": "delta"}}
    found = assess({"nuts": posterior(normal(20)), "mode": point(0.0, provenance=facts)})
    assert found.judgements["mode"].verdict is Verdict.MEANS_ONLY


def test_draws_that_are_not_finite_do_not_prevent_the_others() -> None:
    bad = guide(normal(21))
    bad["x"][0, :7, 1] = torch.nan
    found = assess({"nuts": posterior(normal(22)), "bad": bad, "good": guide(normal(23))})
    assert found.judgements["bad"].verdict is Verdict.DO_NOT_TRUST
    assert "Site 'x': 7 of 4000 draws are NaN or infinite (at [1])" in (
        found.judgements["bad"].sentence
    )
    assert found.judgements["good"].verdict is Verdict.TRUST
    assert list(found.measurements.methods.index) == ["nuts", "bad", "good"]
    alone = verdicts({"nuts": bad, "good": guide(normal(23))}, "nuts")
    assert alone == {"nuts": Verdict.DO_NOT_TRUST, "good": Verdict.CANNOT_JUDGE}
    assert verdicts({"bad": bad}) == {"bad": Verdict.DO_NOT_TRUST}


def test_draws_that_say_nothing() -> None:
    reference = posterior(normal(24))
    stuck = posterior(np.zeros((400, 3)))
    single = Posterior(draws={"x": torch.zeros(1, 1, 3)}, latents=("x",))
    local = Posterior(draws={}, latents=(), is_mcmc=False, local_plate="data")
    found = assess({"nuts": reference, "stuck": stuck, "single": single, "local": local})
    assert found.judgements["stuck"].verdict is Verdict.DO_NOT_TRUST
    assert "All of its 400 draws are the same" in found.judgements["stuck"].sentence
    assert found.judgements["single"].verdict is Verdict.CANNOT_JUDGE
    assert found.judgements["local"].action == "local = local.sample(data)"


def test_a_constant_scalar_is_no_error() -> None:
    draws = [normal(25), normal(26)]
    for values in draws:
        values[:, 2] = 1.0
    found = assess({"nuts": posterior(draws[0]), "svi": guide(draws[1])})
    assert found.judgements["svi"].verdict is Verdict.TRUST


def test_another_constant_is_an_error() -> None:
    """What the reference has only one value of has no sd to measure an error in."""
    reference, rounded, other, varying = (normal(seed) for seed in range(44, 48))
    reference[:, 2], rounded[:, 2], other[:, 2] = 3.0, 3.0 + 1e-6, 4.0
    found = assess(
        {
            "nuts": posterior(reference),
            "rounded": guide(rounded),
            "other": guide(other),
            "varying": guide(varying),
        }
    ).judgements
    assert found["rounded"].verdict is Verdict.TRUST
    for name in ("other", "varying"):
        assert found[name].verdict is Verdict.DO_NOT_TRUST
        assert "value of x[2] is one in all draws of the reference" in found[name].sentence


def test_a_point_cannot_be_the_reference() -> None:
    found = assess({"mode": point(0.0), "svi": guide(normal(48))}, "mode").judgements
    assert found["svi"].verdict is Verdict.CANNOT_JUDGE
    assert "mode: it is one point, and has no spread" in found["svi"].sentence
    assert "chains" not in " ".join(found["mode"].caveats)


def test_good_chains_judged_by_an_approximation() -> None:
    """It is allowed, and where they differ it is said which of the two is rather off."""
    posteriors = {"svi": guide(normal(49) + 1.0), "nuts": posterior(normal(50))}
    found = assess(posteriors, "svi").judgements["nuts"]
    assert found.verdict is Verdict.DO_NOT_TRUST
    assert "judged against svi, an approximation itself" in found.sentence
    assert any("it is rather svi that is off" in caveat for caveat in found.caveats)
    assert found.action == 'comparison = pg.compare(posteriors, reference="nuts")'


def test_interrupted_runs_are_said_to_be() -> None:
    found = assess({"nuts": posterior(normal(27)), "svi": guide(normal(28), interrupted=True)})
    assert any("interrupted" in caveat for caveat in found.judgements["svi"].caveats)


def test_other_models_and_other_data() -> None:
    with pytest.raises(SiteError, match=r"'x': expected the same shape.*\(3,\) in a, \(4,\) in b"):
        assess({"a": posterior(normal(29)), "b": guide(normal(30, scalars=4))})
    y = torch.tensor([1.0, 2.0, 3.0])
    other = torch.tensor([1.0, 2.5, 3.0])
    a = posterior(normal(31), data={"y": y.double() / 3})
    assert verdicts({"a": a, "b": guide(normal(32), data={"y": y / 3})})["b"] is Verdict.TRUST
    with pytest.raises(ValueError, match=r"another 'y' in 'b' than in 'a' \(1 of 3 values differ"):
        assess({"a": a, "b": guide(normal(32), data={"y": other / 3})})
    for one, two in ((5, 6), ("a", "b"), (np.ones(3), np.zeros(3))):
        with pytest.raises(ValueError, match="another 'n' in 'b' than in 'a'"):
            assess(
                {
                    "a": dataclasses.replace(a, data={"n": one}),
                    "b": guide(normal(32), data={"n": two}),
                }
            )
    with pytest.raises(ValueError, match=r"unknown reference 'nutz'.*Did you mean 'nuts'"):
        assess({"nuts": posterior(normal(33))}, "nutz")
    with pytest.raises(ValueError, match="at least one posterior"):
        assess({})
    with pytest.raises(TypeError, match="expected a dictionary by name"):
        assess([posterior(normal(34))])  # type: ignore[arg-type]


def test_draws_that_are_no_draws() -> None:
    for draws in (
        {"x": torch.randn(1000)},
        {"x": torch.randn(4, 1000), "y": torch.randn(4, 500)},
        {"x": torch.randn(4, 1000, dtype=torch.complex64)},
    ):
        bad = Posterior(draws=draws, latents=tuple(draws))
        with pytest.raises(ValueError, match=r"site '[xy]': expected real draws with axes"):
            assess({"bad": bad})
    wrong: Any = {"mean_red": 0.2}
    with pytest.raises(TypeError, match=r"expected Thresholds, such as .* got dict"):
        assess({"nuts": posterior(normal(34))}, thresholds=wrong)


def test_only_some_of_very_many_parameters_are_looked_at_jointly() -> None:
    wide = [normal(seed, scalars=300, draws=1000) for seed in (35, 36)]
    found = assess({"nuts": posterior(wide[0]), "svi": guide(wide[1])})
    assert any("200 of 300 were looked at" in sentence for sentence in found.not_checked)
    # A wrong dependence of scalars among the worst is still found, however many there are.
    assert found.distances.loc["svi", "c2st"] == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_gives_the_same_assessment() -> None:
    posteriors = {"nuts": posterior(normal(37)), "svi": guide(0.7 * normal(38))}
    first, second = (assess(posteriors, seed=3).to_dict() for _ in range(2))
    assert first == second
    assert assess(posteriors, seed=4).to_dict()["distances"] != first["distances"]
