"""The differential equations of posteriordb, solved by Runge-Kutta steps on a fixed grid."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from reference import ReferencePosterior, tensor

__all__ = ["DYNAMICS", "concentrations", "populations"]

STEPS_PER_YEAR = 4
STEPS_PER_OBSERVATION = 4


def populations(theta: torch.Tensor, start: torch.Tensor, years: int) -> torch.Tensor:
    """Solve the Lotka-Volterra equations of prey u and predator v.

    Args:
        theta: Birth, predation, death and feeding rate, (4,).
        start: Populations at time zero, (2,).
        years: How many.

    Returns:
        The populations after each year, (years, 2).
    """
    birth, predation, death, feeding = theta.unbind(-1)
    growth = torch.stack([birth, -death])
    effect = torch.stack([-predation, feeding])  # of each kind's partner on its growth

    def derivative(z: torch.Tensor) -> torch.Tensor:
        return (growth + effect * z.flip(-1)) * z

    step = 1.0 / STEPS_PER_YEAR
    z, solution = start, []
    for _ in range(years):
        for _ in range(STEPS_PER_YEAR):
            k1 = derivative(z)
            k2 = derivative(z + step / 2 * k1)
            k3 = derivative(z + step / 2 * k2)
            k4 = derivative(z + step * k3)
            z = z + step / 6 * (k1 + 2 * (k2 + k3) + k4)
        solution.append(z)
    return torch.stack(solution)


def lotka_volterra(y_init: torch.Tensor, y: torch.Tensor) -> None:
    """Pelts of hare and lynx, one count a year."""
    location = torch.tensor([1.0, 0.05, 1.0, 0.05])
    scale = torch.tensor([0.5, 0.05, 0.5, 0.05])
    # Masked, so that draws to start from lie near the prior, where the steps are small enough.
    theta = pyro.sample("theta", dist.LogNormal(location.log(), 0.5).to_event(1).mask(False))
    pyro.factor("theta_prior", dist.Normal(location, scale).log_prob(theta).sum())
    start = dist.LogNormal(torch.tensor(10.0).log(), 1.0).expand([2]).to_event(1)
    z_init = pyro.sample("z_init", start)
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    z = populations(theta, z_init, len(y))
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=y_init)
    with pyro.plate("year", len(y)):
        pyro.sample("y", dist.LogNormal(z.log(), sigma).to_event(1), obs=y)


def concentrations(
    k_a: torch.Tensor,
    k_m: torch.Tensor,
    v_m: torch.Tensor,
    dose: torch.Tensor,
    volume: torch.Tensor,
    interval: torch.Tensor,
    observations: int,
) -> torch.Tensor:
    """Solve for a drug's concentration: first-order absorption, Michaelis-Menten elimination.

    Args:
        k_a: Absorption rate.
        k_m: Concentration at which elimination is half as fast as it can be.
        v_m: Greatest elimination rate.
        dose: Dose at time zero.
        volume: Volume of the compartment.
        interval: Time between observations.
        observations: How many.

    Returns:
        The concentrations at the observations, (observations,).
    """
    step = interval / STEPS_PER_OBSERVATION
    half_steps = step / 2 * torch.arange(2 * STEPS_PER_OBSERVATION * observations + 1)
    absorption = (dose * k_a / volume * torch.exp(-k_a * half_steps)).unbind()
    fastest = v_m / volume

    def derivative(half_step: int, c: torch.Tensor) -> torch.Tensor:
        return absorption[half_step] - fastest * c / (k_m + c)

    c, solution = torch.zeros_like(k_a), []
    for i in range(STEPS_PER_OBSERVATION * observations):
        k1 = derivative(2 * i, c)
        k2 = derivative(2 * i + 1, c + step / 2 * k1)
        k3 = derivative(2 * i + 1, c + step / 2 * k2)
        k4 = derivative(2 * i + 2, c + step * k3)
        c = c + step / 6 * (k1 + 2 * (k2 + k3) + k4)
        if (i + 1) % STEPS_PER_OBSERVATION == 0:
            solution.append(c)
    return torch.stack(solution)


def one_compartment(
    dose: torch.Tensor, volume: torch.Tensor, interval: torch.Tensor, c_hat: torch.Tensor
) -> None:
    """Measured concentrations of a drug in blood, log-normal around the solution."""
    k_a, k_m, v_m, sigma = (
        pyro.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "V_m", "sigma")
    )
    c = concentrations(k_a, k_m, v_m, dose, volume, interval, len(c_hat))
    with pyro.plate("time", len(c_hat)):
        pyro.sample("c_hat", dist.LogNormal(c.log(), sigma), obs=c_hat)


DYNAMICS = [
    ReferencePosterior(
        "hudson_lynx_hare-lotka_volterra",
        lotka_volterra,
        lambda raw: {"y_init": tensor(raw["y_init"]), "y": tensor(raw["y"])},
    ),
    ReferencePosterior(
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
        one_compartment,
        lambda raw: {
            "dose": tensor(raw["D"]),
            "volume": tensor(raw["V"]),
            "interval": tensor(raw["times"][0] - raw["t0"]),
            "c_hat": tensor(raw["C_hat"]),
        },
        without_moments=("K_m", "V_m"),
    ),
]
