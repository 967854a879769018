"""Assessments made by hand: real draws and measurements, findings that fit to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_gen.core import Posterior
from ppl_gen.diagnostics import psis
from ppl_gen.judge.findings import (
    Assessment,
    Gate,
    Grade,
    Judgement,
    PredictiveFit,
    Reason,
    Verdict,
    WeightFindings,
)
from ppl_gen.judge.measure import measure

Draw: TypeAlias = Callable[..., Posterior]
Assess: TypeAlias = Callable[..., Assessment]

SHAPES = {"mu": (), "tau": (), "weights": (2, 2)}


def draw_posterior(
    seed: int,
    shift: float = 0.0,
    scale: float = 1.0,
    chains: int = 4,
    draws: int = 800,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    **options: Any,
) -> Posterior:
    """Draw `draws` values in all: mu normal, tau log-normal, anything else standard normal.

    mu and the logarithm of tau are shifted and scaled, mu around 50 with a scale of 4.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(chains, draws // chains, *shape, generator=generator).double()

    values = {}
    for site, shape in shapes.items():
        if site == "mu":
            values[site] = 50.0 + 4.0 * (shift + scale * noise())
        elif site == "tau":
            values[site] = torch.exp(shift + scale * noise())
        else:
            values[site] = noise(*shape)
    options.setdefault("is_mcmc", chains > 1)
    options.setdefault("provenance", {"method": "NUTS" if chains > 1 else "SVI", "seconds": 2.5})
    return Posterior(draws=values, latents=tuple(shapes), **options)


def weight_findings(scale: float, seed: int = 0) -> WeightFindings:
    """Those of a normal guide of that scale for a standard normal posterior, of 10,000 draws."""
    x = scale * np.random.default_rng(seed).normal(size=10_000)
    found = psis(-(x**2) / 2 + x**2 / (2 * scale**2))
    k = found.pareto_k
    return WeightFindings(
        pareto_k=k,
        interval=(k - 0.1, k + 0.1),
        threshold=found.threshold,
        ess=found.ess,
        draws=len(x),
        log_weights=np.sort(found.log_weights)[::-1][:1000],
        log_evidence=(-31.31, 0.02),
        elbo_gap=0.28,
    )


def predictive_fit(seed: int = 0) -> PredictiveFit:
    rng = np.random.default_rng(seed)
    return PredictiveFit(
        elpd=-30.7,
        elpd_se=1.4,
        p_loo=1.1,
        bad_k=0,
        loo_pit={"y": rng.uniform(size=60)},
        p_values={"y": {"mean": 0.5, "sd": 0.99, "minimum": 0.4, "maximum": 0.6}},
        replicated={"y": rng.normal(size=(20, 60))},
        observed={"y": rng.normal(size=60)},
    )


def assess_by_hand(posteriors: Mapping[str, Posterior], reference: str | None) -> Assessment:
    """Return an assessment whose reference is trusted and whose guides are not."""
    measurements = measure(posteriors, reference)
    judgements, gates, weights, histories, stats = {}, [], {}, {}, {}
    for index, (name, posterior) in enumerate(posteriors.items()):
        if name == reference:
            judgements[name] = Judgement(
                name, Verdict.TRUST, "Its chains agree: the highest R-hat is 1.002."
            )
            gates.append(
                Gate(name, "reference", True, "R-hat is 1.002 at most.", {"max_r_hat": 1.002})
            )
        else:
            judgements[name] = Judgement(
                name,
                Verdict.DO_NOT_TRUST,
                "The sd of mu is 50 % too small.",
                (
                    Reason("sd", "mu", 0.5, 0.08, Grade.RED, "The sd of mu is 50 % too small."),
                    Reason("mean", "tau", 0.2, 0.05, Grade.AMBER, "the mean of tau is 0.2 sd off"),
                ),
                'posterior = pg.fit(pair, data, SVI(guide="full_rank"))',
                ("Its k-hat is above the threshold.",),
            )
        if posterior.is_mcmc:
            size = (posterior.num_chains, posterior.num_draws)
            stats[name] = {"energy": np.random.default_rng(index).normal(size=size)}
        else:
            weights[name] = weight_findings(0.5 + 0.3 * index, seed=index)
            steps = np.arange(1, 501)
            noise = np.random.default_rng(index).normal(size=500)
            histories[name] = 31.0 + 20.0 / steps + 0.1 * noise
            gates.append(Gate(name, "optimisation", True, "The ELBO rose by 0.01 at the end."))
    others = [name for name in posteriors if name != reference]
    kinds = ("wasserstein", "sliced_wasserstein", "mmd", "c2st")
    columns: dict[str, Any] = {}
    for kind in kinds:
        columns |= {kind: 0.5, f"{kind}_floor": 0.1, f"{kind}_upper": 0.2, f"{kind}_excess": 0.4}
    distances = pd.DataFrame(
        columns | {"worst_pair": "mu and tau", "correlation_error": 0.4},
        index=others if reference is not None else [],
    )
    return Assessment(
        measurements=measurements,
        reference=reference,
        judgements=judgements,
        gates=tuple(gates),
        distances=distances,
        weights=weights,
        fits={name: predictive_fit(index) for index, name in enumerate(posteriors)},
        histories=histories,
        sample_stats=stats,
        warnings={name: ("It was a short run.",) for name in others[:1]},
        not_checked=("Whether labels switch was not checked: the pair says nothing of labels.",),
        provenance={
            name: dict(p.provenance) | {"versions": {"torch": "2.13", "ppl_gen": "0.1"}}
            for name, p in posteriors.items()
        },
    )


def without(assessment: Assessment, **parts: Any) -> Assessment:
    return replace(assessment, **parts)


@pytest.fixture(scope="session")
def posterior() -> Draw:
    return draw_posterior


@pytest.fixture(scope="session")
def by_hand() -> Assess:
    return assess_by_hand


@pytest.fixture(scope="session")
def assessment() -> Assessment:
    """Five methods of six parameters, of which mean-field is wrong."""
    return assess_by_hand(
        {
            "mean-field": draw_posterior(1, 1.0, 0.5, chains=1, elbo=(-33.4156, 0.0123)),
            "full-rank": draw_posterior(2, chains=1, elbo=(-31.6, 0.01)),
            "flow": draw_posterior(3, 0.1, 1.1, chains=1),
            "hmc": draw_posterior(4, scale=1.6),
            "nuts": draw_posterior(5),
        },
        "nuts",
    )
