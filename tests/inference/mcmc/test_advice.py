"""Advice after sampling: each kind of trouble is found and named, and a good run has none."""

import re
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import ppl_gen as pg
from ppl_gen.inference import HMC, NUTS, RandomWalk
from ppl_gen.inference.mcmc.advice import advice
from ppl_gen.models import EightSchools

SCHOOLS = {
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def good_statistics(chains: int = 4, length: int = 1000) -> dict[str, torch.Tensor]:
    return {
        "diverging": torch.zeros(chains, length, dtype=torch.bool),
        "energy": draws(chains, length, seed=1),
        "tree_depth": torch.full((chains, length), 3),
    }


def only(texts: tuple[str, ...]) -> str:
    assert len(texts) == 1, texts
    return texts[0]


def advice_on(
    model: Any, data: Mapping[str, Any], method: Any, seed: int = 0, **options: Any
) -> tuple[str, ...]:
    posterior = pg.fit(model, data, method, seed=seed, progress=False)
    latents = {name: posterior[name] for name in posterior.latents}
    statistics = {} if isinstance(method, RandomWalk) else posterior.sample_stats
    depth = getattr(method, "max_tree_depth", None)
    return advice(
        latents,
        statistics,
        target_accept=method.target_accept,
        max_tree_depth=depth,
        **options,
    )


def test_no_words_for_a_good_run() -> None:
    # Independent draws of 3 scalars, with one that is constant: 200 runs, one R-hat or ESS too
    # bad among them has a probability below 1e-6.
    for seed in range(200):
        sites = {"x": draws(4, 500, 3, seed=seed), "one": torch.ones(4, 500)}
        assert advice(sites, good_statistics(length=500), max_tree_depth=10) == ()


@pytest.mark.parametrize("method", [NUTS(), HMC()])
def test_no_words_for_good_runs_of_the_samplers(method: Any) -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), torch.tensor([0.1, 1.0, 10.0])).to_event(1))
        pyro.sample("factor", dist.LKJCholesky(3, 2.0))

    for seed in range(5):
        assert advice_on(model, {}, method, seed) == ()


def test_divergences_say_where() -> None:
    sites = {"mu": draws(4, 1000), "tau": draws(4, 1000, 2, seed=1).exp()}
    statistics = good_statistics()
    statistics["diverging"] = sites["tau"][..., 1] < 0.05
    count = int(statistics["diverging"].sum())
    assert only(advice(sites, statistics)).startswith(
        f"{count} of 4000 draws diverged, most where 'tau[1]' is small (median 0.0"
    )
    statistics["diverging"] = sites["mu"] > 2.5
    assert "most where 'mu' is large (median 2." in only(advice(sites, statistics))
    # Anywhere: nothing to name, for any of 100 seeds.
    for seed in range(100):
        statistics["diverging"] = draws(4, 1000, seed=seed + 2) > 2.5
        assert re.match(r"\d+ of 4000 draws diverged: ", only(advice(sites, statistics)))


def test_places_of_divergences_are_preferred_to_draws() -> None:
    sites = {"mu": draws(4, 1000), "tau": draws(4, 1000, seed=1).exp()}
    statistics = good_statistics()
    statistics["diverging"][:, :3] = True
    places = {"tau": torch.full((12,), 0.01)}
    assert "'tau' is small (median 0.01, else" in only(
        advice(sites, statistics, divergences=places)
    )
    # Draws that were thinned since; the flags were not, so that all divergences are counted.
    thinned = {name: value[:, ::2] for name, value in sites.items()}
    statistics = good_statistics(length=500) | {"diverging": statistics["diverging"]}
    text = only(advice(thinned, statistics, divergences=places))
    assert text.startswith("12 of 4000 draws diverged, most where 'tau' is small")


@pytest.mark.parametrize(
    ("target", "text"),
    [(0.8, "Take target_accept=0.9, or write"), (0.95, "=0.99, or write"), (0.99, ". Write the")],
)
def test_the_next_target_is_named(target: float, text: str) -> None:
    statistics = good_statistics()
    statistics["diverging"][0, 0] = True
    found = only(advice({"x": draws(4, 1000)}, statistics, target_accept=target))
    assert found.startswith("1 of 4000 draws diverged: ")
    assert text in found


def test_chains_that_disagree() -> None:
    x = draws(4, 1000, 2)
    x[2, :, 1] += 2.0
    rhat, ess = advice({"x": x}, good_statistics())
    assert re.match(r"'x\[1\]' has an R-hat of 1\.[23]\d+ \(above 1.01: 1 of 2 scalars\)", rhat)
    assert ess.startswith("'x[1]' has an effective sample size of ")
    assert ess.endswith("See to R-hat first: more draws alone may not help.")


def test_few_effective_draws() -> None:
    # AR(1) chains by a = 0.9 have 2000 / 19 = 105 effective draws, so about four times as many are
    # needed. The relative sd of the ESS is 0.127 for four times as many draws, so 0.25 for these.
    x = draws(2, 1000)
    for t in range(1, 1000):
        x[:, t] = 0.9 * x[:, t - 1] + (1 - 0.81) ** 0.5 * x[:, t]
    (text,) = (t for t in advice({"x": x}, good_statistics(2)) if "effective" in t)
    found = re.match(
        r"'x' has an effective sample size of (\d+) in its (?:bulk|tails) \(below 400: the only "
        r"scalar\)\. Draw (\S+) times as many: posterior\.extend\((\d+)\)\.$",
        text,
    )
    assert found is not None
    least, times, more = (float(group) for group in found.groups())
    assert 30 < least < 250
    assert times == pytest.approx(400 / least, rel=0.05)
    assert more == pytest.approx((400 / least - 1) * 1000, rel=0.1)


def test_many_short_chains_need_a_hundred_effective_draws_each() -> None:
    texts = advice({"x": draws(16, 60)}, good_statistics(16, 60))
    (text,) = (text for text in texts if "effective" in text)
    assert "(below 1600: the only scalar)" in text


def test_depth_reached_in_more_than_one_draw_of_twenty() -> None:
    sites, statistics = {"x": draws(4, 1000)}, good_statistics()
    statistics["tree_depth"][:, :50] = 10
    assert advice(sites, statistics, max_tree_depth=10) == ()
    statistics["tree_depth"][:, :60] = 10
    assert "6% of the draws reached max_tree_depth=10" in only(
        advice(sites, statistics, max_tree_depth=10)
    )
    assert advice(sites, statistics) == ()


def test_low_energy_fraction_names_the_chains() -> None:
    statistics = good_statistics()
    statistics["energy"][[0, 3]] = draws(2, 1000).cumsum(1)
    text = only(advice({"x": draws(4, 1000)}, statistics))
    assert text.startswith("E-BFMI is below 0.3 in chains 1 and 4 (least 0.0")
    statistics["energy"] = draws(8, 1000).cumsum(1)
    text = only(advice({"x": draws(8, 1000)}, statistics | {"diverging": torch.zeros(8, 1000)}))
    assert "in chains 1, 2, 3, 4 and 4 more (" in text


def test_few_chains_and_few_draws() -> None:
    assert only(advice({"x": draws(3, 1000)}, {})).startswith("Only 3 chains were run, too few")
    assert only(advice({"x": draws(1, 1000)}, {})).startswith("Only 1 chain was run, so nothing")
    assert only(advice({"x": draws(4, 3)}, {})) == (
        "Too few draws for R-hat and effective sample size: posterior.extend(100)."
    )
    assert advice({}, {}) == ()


def test_a_chain_that_never_moved() -> None:
    x = draws(4, 1000, 2)
    x[1] = 3.0
    texts = advice({"x": x, "one": torch.ones(4, 1000)}, good_statistics())
    assert texts[0].startswith("Chain 2 never moved. ")
    assert "'x[0]' has an R-hat of " in texts[1] or "'x[1]' has an R-hat of " in texts[1]


def test_chains_that_ran_too_far_to_move_have_drifted() -> None:
    # Steps smaller than the rounding of so large a number.
    x = 1e20 * torch.arange(1.0, 5.0).reshape(4, 1).expand(4, 1000)
    assert advice({"x": x}, good_statistics())[0].startswith("'x' wanders off, from 1e+20 to 4e")


def test_drift_is_told_from_modes_and_from_slow_chains() -> None:
    walks = draws(4, 2000, 20).cumsum(1)
    modes = draws(4, 2000, 20) + 100 * torch.arange(4).reshape(4, 1, 1)
    statistics = good_statistics(4, 2000)
    for scale, improper, expected in [
        (1.0, ("x",), ", as the prior of 'x' is. Give 'x' a proper prior."),
        (1e10, (), "the posterior may be improper. Give 'x' a proper prior."),
        (1.0, (), None),
    ]:
        for i in range(20):
            texts = advice({"x": scale * walks[..., i]}, statistics, improper=improper)
            if expected is None:
                assert texts[0].startswith("'x' has an R-hat of ")
            else:
                assert texts[0].startswith("'x' wanders off, from ")
                assert texts[0].endswith(expected)
            texts = advice({"x": scale * modes[..., i]}, statistics, improper=improper)
            assert texts[0].startswith("'x' has an R-hat of ")


def test_a_scalar_that_ran_off_to_infinity() -> None:
    x = draws(4, 1000)
    x[1, 500:] = torch.inf
    texts = advice({"x": x, "y": draws(4, 1000, seed=1)}, good_statistics())
    assert re.match(r"'x' wanders off, from -\S+ to inf so far: the posterior may be", texts[0])


def test_of_many_scalars_some_of_each_site_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_gen.inference.mcmc.advice._MAX_VALUES", 40_000)
    big, small = draws(4, 1000, 50), draws(4, 1000, seed=1)
    small[0] += 5.0
    big[0] += 5.0
    texts = advice({"big": big, "small": small}, good_statistics())
    assert "(above 1.01: 6 of 6 scalars)" in texts[0] or "(above 1.01: 7 of 7" in texts[0]


@pytest.mark.parametrize("seed", range(3))
def test_centred_eight_schools(seed: int) -> None:
    texts = advice_on(EightSchools(centered=True), SCHOOLS, NUTS(target_accept=0.6), seed)
    (text,) = (text for text in texts if "diverged" in text)
    assert "most where 'tau' is small" in text
    assert "Take target_accept=0.9, or write the hierarchy non-centred" in text


def test_what_is_wrong_with_short_shallow_and_single_runs() -> None:
    schools = EightSchools()
    (alone,) = (t for t in advice_on(schools, SCHOOLS, NUTS(chains=1)) if "chain" in t)
    assert alone.startswith("Only 1 chain was run")
    short = advice_on(schools, SCHOOLS, NUTS(draws=30, warmup=300))
    assert any("effective sample size" in text and "extend(" in text for text in short)
    shallow = advice_on(schools, SCHOOLS, NUTS(max_tree_depth=2))
    assert any("% of the draws reached max_tree_depth=2, which" in text for text in shallow)


@pytest.mark.parametrize("method", [NUTS(), HMC(), RandomWalk()])
def test_an_improper_posterior_is_found_as_it_drifts(method: Any) -> None:
    def ridge(y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    texts = advice_on(ridge, {"y": torch.ones(5)}, method, improper=("a", "b"))
    assert re.match(r"'[ab]' wanders off, from .* may be improper, as the prior of", texts[0])
