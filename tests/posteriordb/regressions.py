"""The linear regressions of posteriordb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from priors import flat, restricted
from pyro.distributions import constraints
from reference import ReferencePosterior, tensor

__all__ = ["REGRESSIONS"]

Raw = Mapping[str, Any]
Data = dict[str, torch.Tensor]


def observe(mean: torch.Tensor, sigma: torch.Tensor, y: torch.Tensor) -> None:
    """Observe normal outcomes, (n,), around their mean."""
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def flat_coefficients(x: torch.Tensor, y: torch.Tensor) -> None:
    """Flat coefficients, half-Cauchy noise."""
    beta = flat("beta", constraints.real_vector, x.shape[-1])
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    observe(x @ beta, sigma, y)


def all_flat(x: torch.Tensor, y: torch.Tensor) -> None:
    """Flat coefficients and noise."""
    beta = flat("beta", constraints.real_vector, x.shape[-1])
    sigma = flat("sigma", constraints.positive)
    observe(x @ beta, sigma, y)


def normal_coefficients(x: torch.Tensor, y: torch.Tensor) -> None:
    """Normal coefficients, half-normal noise."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    observe(x @ beta, sigma, y)


def kilpisjarvi(
    x: torch.Tensor,
    y: torch.Tensor,
    alpha_mean: torch.Tensor,
    alpha_scale: torch.Tensor,
    beta_mean: torch.Tensor,
    beta_scale: torch.Tensor,
) -> None:
    """A line through the summer temperatures of 62 years, x far from zero."""
    alpha = pyro.sample("alpha", dist.Normal(alpha_mean, alpha_scale))
    beta = pyro.sample("beta", dist.Normal(beta_mean, beta_scale))
    sigma = flat("sigma", constraints.positive)
    observe(alpha + beta * x, sigma, y)


def diamonds(x: torch.Tensor, y: torch.Tensor) -> None:
    """Log prices, on centred features."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = restricted("sigma", dist.StudentT(3.0, 0.0, 10.0), constraints.positive)
    observe(intercept + x @ b, sigma, y)


def columns(*features: torch.Tensor) -> torch.Tensor:
    """Return a design matrix, (n, 1 + features), with a first column of ones."""
    return torch.stack([torch.ones_like(features[0]), *features], dim=-1)


def kidiq_momhs(raw: Raw) -> Data:
    return {"x": columns(tensor(raw["mom_hs"])), "y": tensor(raw["kid_score"])}


def kidiq_momiq(raw: Raw) -> Data:
    return {"x": columns(tensor(raw["mom_iq"])), "y": tensor(raw["kid_score"])}


def kidiq_interaction(raw: Raw) -> Data:
    high_school, iq = tensor(raw["mom_hs"]), tensor(raw["mom_iq"])
    return {"x": columns(high_school, iq, high_school * iq), "y": tensor(raw["kid_score"])}


def earnings(raw: Raw) -> Data:
    x = columns(tensor(raw["height"]), tensor(raw["male"]))
    return {"x": x, "y": tensor(raw["earn"]).log()}


def earnings_interaction(raw: Raw) -> Data:
    height, male = tensor(raw["height"]), tensor(raw["male"])
    return {"x": columns(height, male, height * male), "y": tensor(raw["earn"]).log()}


def mesquite(raw: Raw) -> Data:
    logs = ("diam1", "diam2", "canopy_height", "total_height", "density")
    x = columns(*(tensor(raw[name]).log() for name in logs), tensor(raw["group"]))
    return {"x": x, "y": tensor(raw["weight"]).log()}


def nes(raw: Raw) -> Data:
    age = tensor(raw["age_discrete"])
    ages = [(age == group).double() for group in (2, 3, 4)]
    before, after = (
        [tensor(raw[name]) for name in names]
        for names in (("real_ideo", "race_adj"), ("educ1", "gender", "income"))
    )
    return {"x": columns(*before, *ages, *after), "y": tensor(raw["partyid7"])}


def kilpisjarvi_data(raw: Raw) -> Data:
    names = {
        "x": "x",
        "y": "y",
        "alpha_mean": "pmualpha",
        "alpha_scale": "psalpha",
        "beta_mean": "pmubeta",
        "beta_scale": "psbeta",
    }
    return {ours: tensor(raw[theirs]) for ours, theirs in names.items()}


def sblrc(raw: Raw) -> Data:
    return {"x": tensor(raw["X"]), "y": tensor(raw["y"])}


def diamonds_data(raw: Raw) -> Data:
    x = tensor(raw["X"])[:, 1:]
    return {"x": x - x.mean(0), "y": tensor(raw["Y"])}


REGRESSIONS = [
    ReferencePosterior("kidiq-kidscore_momhs", flat_coefficients, kidiq_momhs),
    ReferencePosterior("kidiq-kidscore_momiq", flat_coefficients, kidiq_momiq),
    ReferencePosterior("kidiq-kidscore_interaction", flat_coefficients, kidiq_interaction),
    ReferencePosterior("earnings-logearn_height_male", all_flat, earnings),
    ReferencePosterior("earnings-logearn_interaction", all_flat, earnings_interaction),
    ReferencePosterior("mesquite-logmesquite", all_flat, mesquite),
    ReferencePosterior("nes1972-nes", all_flat, nes),
    ReferencePosterior("kilpisjarvi_mod-kilpisjarvi", kilpisjarvi, kilpisjarvi_data),
    ReferencePosterior("sblrc-blr", normal_coefficients, sblrc),
    ReferencePosterior("diamonds-diamonds", diamonds, diamonds_data),
]
