"""Models whose approximations are known to be good or bad, fitted and judged over seeds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import MultivariateNormal

import ppl_gen as pg
from ppl_gen.inference import NUTS, SVI
from ppl_gen.judge import Verdict
from ppl_gen.judge.assess import assess
from ppl_gen.models import BayesianLinearRegression, EightSchools

Record = dict[str, Any]
SVI_DRAWS = 4000


class ExactGuide(BayesianLinearRegression):
    """A regression with known noise, whose guide is its posterior.

    There has to be something to train: a shift of all weights, which is nought.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, noise_scale=0.7, intercept=False)
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        exact = self.exact_posterior(x, y)
        mean = exact.mean + self.shift
        pyro.sample("weights", MultivariateNormal(mean, exact.covariance))


def fit(pair: Any, data: Record, method: Any, seed: int) -> pg.Posterior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pg.fit(pair, data, method, seed=seed, progress=False, device="cpu")


def judged(
    posteriors: dict[str, pg.Posterior], reference: str | None, seed: int
) -> dict[str, Verdict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = assess(posteriors, reference, seed=seed)
    return {name: judgement.verdict for name, judgement in found.judgements.items()}


def eight_schools(seed: int) -> dict[str, Verdict]:
    """Judge mean-field guides of both forms by NUTS on the non-centred one, and by themselves."""
    data = EightSchools.data()
    nuts = fit(EightSchools(), data, NUTS(chains=4, draws=1000, target_accept=0.9), seed)
    verdicts = {}
    for name, centered in (("centred", True), ("non-centred", False)):
        pair = EightSchools(centered=centered)
        guide = fit(pair, data, SVI(guide="mean_field", draws=SVI_DRAWS), seed)
        found = judged({"guide": guide, "nuts": nuts}, "nuts", seed)
        alone = judged({"guide": guide}, None, seed)
        verdicts[f"eight schools, {name} mean-field"] = found["guide"]
        verdicts[f"eight schools, {name} mean-field, no reference"] = alone["guide"]
    return verdicts


def kilpisjarvi(folder: Path) -> Callable[[int], dict[str, Verdict]]:
    """Return a function that judges two guides of a regression with a correlation of -0.99999."""
    from pairs import POSTERIORS

    posterior = POSTERIORS["kilpisjarvi_mod-kilpisjarvi"]
    data = posterior.data(folder)

    def judge(seed: int) -> dict[str, Verdict]:
        nuts = fit(posterior.pair, data, NUTS(chains=4, draws=1000), seed)
        guides = {
            name: fit(posterior.pair, data, SVI(guide=name, draws=SVI_DRAWS), seed)  # type: ignore[arg-type]
            for name in ("mean_field", "full_rank")
        }
        found = judged({**guides, "nuts": nuts}, "nuts", seed)
        return {f"kilpisjarvi, {name}": found[name] for name in guides}

    return judge


def exact_guide(seed: int) -> dict[str, Verdict]:
    """Judge a guide that is the posterior, and the full-rank optimum, which is the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = y + 0.7 * torch.randn(50, generator=generator, dtype=torch.float64)
    data = {"x": x, "y": y}
    pair = ExactGuide(num_features=3)
    nuts = fit(pair, data, NUTS(chains=4, draws=1000), seed)
    still = SVI(guide="pair", steps=1, learning_rate=1e-12, draws=SVI_DRAWS)
    exact = fit(pair, data, still, seed)
    full_rank = fit(pair, data, SVI(guide="full_rank", draws=SVI_DRAWS), seed)
    found = judged({"exact": exact, "full_rank": full_rank, "nuts": nuts}, "nuts", seed)
    return {
        "linear-Gaussian, exact guide": found["exact"],
        "linear-Gaussian, full_rank": found["full_rank"],
    }


# What has to come out.
EXPECTED: dict[str, tuple[Verdict, ...]] = {
    "eight schools, centred mean-field": (Verdict.DO_NOT_TRUST,),
    "eight schools, centred mean-field, no reference": (Verdict.DO_NOT_TRUST,),
    "eight schools, non-centred mean-field": (Verdict.AFTER_REWEIGHTING,),
    # As it is; its next action is to reweight it.
    "eight schools, non-centred mean-field, no reference": (
        Verdict.DO_NOT_TRUST,
        Verdict.NO_PROBLEM_FOUND,
    ),
    "kilpisjarvi, mean_field": (Verdict.DO_NOT_TRUST,),
    "kilpisjarvi, full_rank": (Verdict.TRUST,),
    "linear-Gaussian, exact guide": (Verdict.TRUST,),
    "linear-Gaussian, full_rank": (Verdict.TRUST,),
}


def known_answers(seeds: int, folder: Path | None) -> Record:
    """Count the verdicts over seeds.

    Args:
        seeds: How many.
        folder: Folder of posteriordb; None leaves kilpisjarvi out.
    """
    parts: list[Callable[[int], dict[str, Verdict]]] = [eight_schools, exact_guide]
    if folder is not None:
        parts.append(kilpisjarvi(folder))
    counts: dict[str, Counter[str]] = {}
    for part in parts:
        for seed in range(seeds):
            for name, verdict in part(seed).items():
                counts.setdefault(name, Counter())[verdict.value] += 1
                print(f"seed {seed}: {name}: {verdict.value}", flush=True)
    return {
        name: {
            "verdicts": dict(count),
            "as_known": int(np.sum([count[v.value] for v in EXPECTED[name]])),
            "seeds": seeds,
        }
        for name, count in counts.items()
    }
