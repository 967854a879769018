"""Verdicts on fits of models whose answer is known."""

import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import fit
from ppl_gen.core import Posterior
from ppl_gen.inference import NUTS, SVI
from ppl_gen.judge import Verdict, assess
from ppl_gen.models import EightSchools

DATA = EightSchools.data()


@pytest.fixture(scope="module")
def schools() -> Posterior:
    method = NUTS(chains=4, draws=1000, target_accept=0.95)
    return fit(EightSchools(), DATA, method, progress=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_eight_schools_by_mean_field(schools: Posterior, seed: int) -> None:
    """Centred: refused, also reweighted. Non-centred: accepted, reweighted, on its own sites.

    The non-centred guide's tau has an sd of 2.45 and a 95 % quantile of 7.4, where the posterior
    has 3.22 and 9.84.
    """
    method = SVI(guide="mean_field")
    guides = {
        "non_centred": fit(EightSchools(), DATA, method, seed=seed, progress=False),
        "centred": fit(EightSchools(centered=True), DATA, method, seed=seed, progress=False),
    }
    found = assess({"nuts": schools, **guides})
    assert found.judgements["nuts"].verdict is Verdict.NO_PROBLEM_FOUND
    assert list(found.measurements.sites) == ["mu", "tau", "theta"]
    non_centred, centred = (found.judgements[name] for name in ("non_centred", "centred"))
    assert non_centred.verdict is Verdict.AFTER_REWEIGHTING, non_centred.sentence
    assert "tau" in non_centred.sentence
    assert non_centred.action == "non_centred = non_centred.reweight()"
    assert centred.verdict is Verdict.DO_NOT_TRUST, centred.sentence
    assert "reweighting cannot mend it" in centred.sentence
    assert centred.action == "repaired = pg.repair(pair, data, centred)"
    # The log evidence by quadrature is -31.31135. Its error is .008 of 100,000 draws, as is said;
    # weights of so heavy a tail are worth more than that now and then.
    weights = found.weights["non_centred"]
    assert weights.log_evidence[0] == pytest.approx(-31.31135, abs=0.1)
    # The ELBO is -31.59 at the optimum.
    assert weights.elbo_gap == pytest.approx(0.28, abs=0.1)
    alone = assess({"centred": guides["centred"]}).judgements["centred"]
    assert alone.verdict is Verdict.DO_NOT_TRUST


def test_auxiliary_sites_do_not_count(schools: Posterior) -> None:
    """Draws of z that are wrong change nothing where all that is made of them is right."""
    other = fit(EightSchools(), DATA, NUTS(chains=4, draws=1000, target_accept=0.95), seed=1)
    draws = {**other.draws, "z": 3 * other["z"]}
    found = assess({"nuts": schools, "other": Posterior(**{**vars(other), "draws": draws})})
    judgement = found.judgements["other"]
    assert judgement.verdict is Verdict.TRUST, judgement.sentence
    assert any("Not counted" in caveat and "z[" in caveat for caveat in judgement.caveats)
    # Negative control: of tau it would count.
    draws = {**other.draws, "tau": 3 * other["tau"]}
    found = assess({"nuts": schools, "other": Posterior(**{**vars(other), "draws": draws})})
    assert found.judgements["other"].verdict is Verdict.DO_NOT_TRUST


def test_an_exact_guide_is_trusted_and_its_weights_are_no_infinity_in_words() -> None:
    """A linear-Gaussian regression: the posterior is normal, and a full-rank guide can be it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    x[:, 1] += x[:, 0]
    y = x @ torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    y = y + 0.5 * torch.randn(50, generator=generator, dtype=torch.float64)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)

    data = {"x": x, "y": y}
    nuts = fit(model, data, NUTS(chains=4, draws=1000), progress=False)
    full_rank = fit(model, data, SVI(guide="full_rank"), progress=False)
    mean_field = fit(model, data, SVI(guide="mean_field"), progress=False)
    found = assess({"nuts": nuts, "full_rank": full_rank, "mean_field": mean_field})
    judgement = found.judgements["full_rank"]
    assert judgement.verdict is Verdict.TRUST, judgement.sentence
    words = " ".join(
        [judgement.sentence, *judgement.caveats, *(r.sentence for r in judgement.reasons)]
    )
    assert "inf" not in words
    assert "nan" not in words
    # log N(y; 0, X X' 4 + I / 4)
    covariance = 4 * x @ x.T + 0.25 * torch.eye(50, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(50, dtype=torch.float64), covariance).log_prob(y)
    assert found.weights["full_rank"].log_evidence[0] == pytest.approx(float(exact), abs=1e-3)
    assert found.weights["full_rank"].elbo_gap == pytest.approx(0.0, abs=1e-3)
    # The columns correlate: mean-field has right means and narrow sds.
    assert found.judgements["mean_field"].verdict in (Verdict.MEANS_ONLY, Verdict.AFTER_REWEIGHTING)
    alone = assess({"full_rank": full_rank}).judgements["full_rank"]
    assert alone.verdict is Verdict.NO_PROBLEM_FOUND
    assert "inf" not in alone.sentence


def test_kilpisjarvi(shared_data: Path) -> None:
    """Coefficients that correlate at -0.99999: mean-field is of no use, full-rank is."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "posteriordb"))
    from pairs import POSTERIORS

    known: Any = POSTERIORS["kilpisjarvi_mod-kilpisjarvi"]
    folder = shared_data / "posteriordb"
    draws, data = known.reference_latents(folder), known.data(folder)
    guides = {
        name: fit(known.pair, data, SVI(guide=name), progress=False)
        for name in ("mean_field", "full_rank")
    }
    reference = Posterior(draws=draws, latents=tuple(draws))
    found = assess({"reference": reference, **guides}).judgements
    assert found["full_rank"].verdict is Verdict.TRUST, found["full_rank"].sentence
    assert found["mean_field"].verdict is Verdict.DO_NOT_TRUST
    assert "99.5 % too small" in found["mean_field"].sentence
    assert found["mean_field"].action == ('mean_field = pg.fit(pair, data, SVI(guide="full_rank"))')
