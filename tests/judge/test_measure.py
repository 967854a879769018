"""Measurements of posteriors with known differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ppl_gen.core import Posterior
from ppl_gen.core.errors import SiteError
from ppl_gen.diagnostics import ess_bulk, ess_tail, mcse_mean, rhat
from ppl_gen.judge import measure

DRAWS = 4000


def normal(
    seed: int,
    mean: float = 0.0,
    scale: float = 1.0,
    shape: Sequence[int] = (),
    chains: int = 4,
    **options: Any,
) -> Posterior:
    """Build a posterior of one site with independent normal draws."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, DRAWS // chains, *shape, generator=generator, dtype=torch.float64)
    options.setdefault("latents", ("mu",))
    return Posterior(draws={"mu": mean + scale * noise}, **options)


def test_error_of_mean_and_sd_ratio_of_known_normals() -> None:
    exact = normal(1, mean=2.0, scale=4.0)
    wrong = normal(2, mean=2.0 + 1.2, scale=4.0 * 0.5, chains=1, is_mcmc=False)
    table = measure({"wrong": wrong, "exact": exact}, "exact").table.set_index("method")
    # The error is 1.2 / 4 = 0.3. With n = 4,000 draws on both sides its variance is
    # (0.5^2 + 1) / n, and that of the unit adds 0.3^2 / (2 n): an sd of 0.018; four of them.
    assert table.loc["wrong", "error_of_mean"] == pytest.approx(0.3, abs=0.072)
    # Each sd has a relative error of sqrt(1 / 2n), their ratio of sqrt(1 / n): 0.016; four of them.
    assert table.loc["wrong", "sd_ratio"] == pytest.approx(0.5, rel=0.064)
    assert table.loc["exact", "error_of_mean"] == 0.0
    assert table.loc["exact", "error_of_mean_mcse"] == 0.0
    assert table.loc["exact", "sd_ratio"] == 1.0
    assert table.loc["wrong", "mean"] == pytest.approx(float(wrong["mu"].mean()))
    assert table.loc["wrong", "sd"] == pytest.approx(float(wrong["mu"].std()))


def test_standard_error_of_the_error_covers_it() -> None:
    # Equal posteriors: the error over its standard error is standard normal, as the draws are
    # independent. Of 200 elements 2.5 sd must hold 98.8 %; the chance of more than 9 outside is
    # 0.1 %. A standard error half as large would leave 21 % outside.
    a = normal(3, shape=(200,), chains=1, is_mcmc=False)
    b = normal(4, shape=(200,))
    table = measure({"a": a, "b": b}, "b").table.query("method == 'a'")
    z = table["error_of_mean"] / table["error_of_mean_mcse"]
    assert (z.abs() > 2.5).sum() <= 9
    assert z.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * 200))


def test_diagnostics_are_those_of_the_chains_and_of_chains_only() -> None:
    chains = normal(5, shape=(2,))
    guide = normal(6, shape=(2,), chains=1, is_mcmc=False)
    table = measure({"svi": guide, "nuts": chains}, "nuts").table.set_index(["parameter", "method"])
    draws = chains["mu"].numpy()
    for i in range(2):
        row = table.loc[(f"mu[{i}]", "nuts")]
        assert row["r_hat"] == rhat(draws)[i]
        assert row["ess_bulk"] == ess_bulk(draws)[i]
        assert row["ess_tail"] == ess_tail(draws)[i]
        assert row["mcse"] == mcse_mean(draws)[i]
        blank = table.loc[(f"mu[{i}]", "svi"), ["r_hat", "ess_bulk", "ess_tail", "mcse"]]
        assert blank.isna().all()


def test_rows_are_grouped_by_parameter_in_the_order_of_the_draws() -> None:
    a, b = normal(7, shape=(2, 2)), normal(8, shape=(2, 2))
    result = measure({"a": a, "b": b}, "b")
    names = ["mu[0, 0]", "mu[0, 1]", "mu[1, 0]", "mu[1, 1]"]
    assert result.table["parameter"].tolist() == [name for name in names for _ in range(2)]
    assert result.table["method"].tolist() == ["a", "b"] * 4
    assert list(result.parameters) == names
    assert result.parameters["mu[1, 0]"] == ("mu", (1, 0))
    np.testing.assert_array_equal(result.draws("mu[1, 0]")["a"], a["mu"][:, :, 1, 0])
    row = result.table.query("parameter == 'mu[1, 0]' and method == 'a'").iloc[0]
    assert row["mean"] == pytest.approx(float(a["mu"][..., 1, 0].mean()))
    with pytest.raises(ValueError, match=r"unknown parameter 'mu\[2, 0\]'"):
        result.draws("mu[2, 0]")


def test_methods_table() -> None:
    guide = normal(
        9,
        chains=1,
        is_mcmc=False,
        elbo=(-12.5, 0.1),
        sample_stats={"lp": torch.zeros(1, DRAWS)},
        provenance={"method": "SVI", "seconds": 1.5, "gradient_evaluations": 300},
    )
    diverging = torch.zeros(4, DRAWS // 4, dtype=torch.bool)
    diverging[1, 3] = diverging[2, 5] = True
    chains = normal(
        10,
        sample_stats={"diverging": diverging},
        provenance={"method": "NUTS", "seconds": 9, "gradient_evaluations": 5000},
    )
    result = measure({"svi": guide, "nuts": chains}, "nuts")
    svi, nuts = result.methods.loc["svi"], result.methods.loc["nuts"]
    assert (svi["method"], svi["elbo"], svi["elbo_mcse"]) == ("SVI", -12.5, 0.1)
    assert (svi["seconds"], svi["gradient_evaluations"]) == (1.5, 300)
    assert np.isnan([svi["max_r_hat"], svi["min_ess"], svi["divergences"], nuts["elbo"]]).all()
    assert (nuts["chains"], nuts["draws"], nuts["divergences"]) == (4, 1000, 2)
    draws = chains["mu"].numpy()
    assert nuts["max_r_hat"] == rhat(draws)
    assert nuts["min_ess"] == min(ess_bulk(draws), ess_tail(draws))
    assert any("2 divergent transitions of 4000" in note for note in result.notes)


def test_a_reference_that_has_not_converged_is_said_so() -> None:
    good, bad = normal(11), normal(12)
    bad["mu"][3] += 3.0
    notes = measure({"good": good, "bad": bad}, "bad").notes
    assert len(notes) == 1
    assert "The reference bad has an R-hat of" in notes[0]
    assert measure({"good": good}, "good").notes == ()


def test_a_reference_that_is_no_markov_chain_is_said_so() -> None:
    guide = normal(13, chains=1, is_mcmc=False)
    notes = measure({"guide": guide, "chains": normal(14)}, "guide").notes
    assert len(notes) == 1
    assert "not MCMC" in notes[0]


def test_an_interrupted_run_is_said_so() -> None:
    assert "was interrupted" in measure({"a": normal(15, interrupted=True)}, "a").notes[0]


def test_sites_that_not_all_have_are_left_out_by_name() -> None:
    a, b = normal(16), normal(17)
    a.draws["only_a"] = torch.zeros(4, 1000)
    b.draws["empty"] = a.draws["empty"] = torch.zeros(4, 1000, 0)
    result = measure({"a": a, "b": b}, "b")
    assert result.left_out == {"only_a": "not in b", "empty": "it has no elements"}
    assert list(result.parameters) == ["mu"]


def test_deterministic_sites_that_are_not_finite_are_left_out_with_their_count() -> None:
    a, b = normal(18), normal(19)
    a.draws["log"] = torch.zeros(4, 1000, 2)
    b.draws["log"] = torch.zeros(4, 1000, 2)
    b.draws["log"][1, :7, 1] = -torch.inf
    reason = measure({"a": a, "b": b}, "a").left_out["log"]
    assert reason == "7 of 4000 draws in 'b' are NaN or infinite (at [1])"


def test_constants_and_whole_numbers() -> None:
    a, b = normal(20), normal(21, chains=1, is_mcmc=False)
    for posterior in (a, b):
        chains, draws = posterior["mu"].shape
        posterior.draws["constant"] = torch.full((chains, draws), 3.0)
        posterior.draws["count"] = torch.arange(draws).expand(chains, draws) % 3
        posterior.draws["flag"] = posterior.draws["count"] > 0
    table = measure({"a": a, "b": b}, "a").table.set_index(["parameter", "method"])
    assert table.loc[("constant", "b"), "mean"] == 3.0
    assert np.isnan(table.loc[("constant", "b"), "error_of_mean"])
    assert np.isnan(table.loc[("constant", "b"), "sd_ratio"])
    assert table.loc[("count", "b"), "mean"] == pytest.approx(1.0, abs=1e-3)
    assert table.loc[("flag", "b"), "mean"] == pytest.approx(2 / 3, abs=1e-3)


def test_posteriors_are_not_changed() -> None:
    posterior = normal(22)
    before = posterior["mu"].clone()
    result = measure({"a": posterior}, "a")
    result.draws("mu")["a"][:] = 0.0
    assert torch.equal(posterior["mu"], before)


def test_unknown_reference_with_near_matches() -> None:
    with pytest.raises(ValueError, match=r"unknown reference 'nutz'.*Did you mean 'nuts'"):
        measure({"nuts": normal(23), "svi": normal(24)}, "nutz")


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(SiteError, match=r"'mu'.*\(2,\) in a, \(3,\) in b"):
        measure({"a": normal(25, shape=(2,)), "b": normal(26, shape=(3,))}, "a")


def test_draws_that_are_not_finite_are_counted_and_named() -> None:
    bad = normal(27, shape=(2, 3))
    bad["mu"][0, :5, 1, 2] = torch.nan
    bad["mu"][2, 0, 0, 0] = torch.inf
    with pytest.raises(
        ValueError,
        match=r"site 'mu': 6 of 4000 draws in 'bad' are NaN or infinite \(at \[0, 0\], \[1, 2\]\)",
    ):
        measure({"good": normal(28, shape=(2, 3)), "bad": bad}, "good")


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (4, 0)])
def test_fewer_than_two_draws(shape: tuple[int, ...]) -> None:
    short = Posterior(draws={"mu": torch.zeros(shape)}, latents=("mu",))
    with pytest.raises(ValueError, match="posterior 'short', site 'mu': expected at least 2 draws"):
        measure({"short": short}, "short")


def test_nothing_in_common() -> None:
    other = Posterior(draws={"nu": torch.randn(4, 10)}, latents=("nu",))
    with pytest.raises(ValueError, match=r"none in common \(a has mu; b has nu\)"):
        measure({"a": normal(29), "b": other}, "a")


def test_no_posterior_at_all() -> None:
    with pytest.raises(ValueError, match="at least one posterior"):
        measure({}, "nuts")


def test_what_is_no_posterior() -> None:
    with pytest.raises(TypeError, match=r"posterior 'a': expected a Posterior.*got dict"):
        measure({"a": {"mu": torch.zeros(4, 10)}}, "a")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="names as text, got 1"):
        measure({1: normal(30)}, "a")  # type: ignore[dict-item]
