"""Find three kinds of wine by a mixture of normal distributions, by three methods.

The data are real: alcohol and flavanoids of 178 Italian wines of three cultivars, which the model
does not see. The mixture is fitted by variational inference, Hamiltonian Monte Carlo and
NUTS. Its components have no order, and every chain names them in its own way: after relabelling
they mean the same in all chains and all methods, and can be compared.

    python examples/gaussian_mixture.py

prints R-hat before and after relabelling, a table of all parameters, and how well the components
match the cultivars; and writes into runs/gaussian_mixture/:

    density.png           the predictive density of each method over the data
    responsibilities.png  which component each wine may come from
    marginals.png         the marginals of the parameters over each other
    comparison.html       the table and the marginals in one page
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.datasets import load_wine

import ppl_gen as pg
from common import add_shared, claim_folder, fit_all, make_parser, run_as_command, save
from ppl_gen.core import Method
from ppl_gen.diagnostics import rhat
from ppl_gen.inference import HMC, NUTS, SVI
from ppl_gen.models import GaussianMixture

FEATURES = ("alcohol", "flavanoids")
# Distinguishable for colour-blind eyes (Okabe and Ito 2008), and their mixtures as well.
COLORS = ("#0072B2", "#E69F00", "#CC3377", "#009E73", "#56B4E9", "#D55E00")


def main(arguments: list[str] | None = None) -> None:
    run_as_command(run, parse(arguments))


def run(options: argparse.Namespace) -> None:
    out = claim_folder(options.out, overwrite=options.overwrite)
    x, cultivars = wines()
    pair = GaussianMixture(num_components=3, num_features=2)
    chains = {"chains": options.chains, "draws": options.draws, "warmup": options.warmup}
    methods: dict[str, Method] = {
        "mean-field": SVI(steps=options.steps, draws=options.chains * options.draws),
        "hmc": HMC(**chains),
        "nuts": NUTS(**chains),
    }
    raw = fit_all(pair, {"x": x}, methods, options.seed, out / "posteriors")

    # NUTS names the components, and the other methods take its names over.
    nuts = pair.relabel(raw["nuts"])
    posteriors = {name: pair.relabel(posterior, like=nuts) for name, posterior in raw.items()}
    for name in ("hmc", "nuts"):
        before, after = largest_r_hat(raw[name]), largest_r_hat(posteriors[name])
        print(f"{name}: largest R-hat {before:.2f} as sampled, {after:.2f} relabelled")
    comparison = pg.compare(posteriors, reference="nuts")
    print(comparison)
    for name, posterior in posteriors.items():
        found = pair.responsibilities(posterior, x, average=True).argmax(-1)
        print(f"{name}: {agreement(found, cultivars):.0%} of the wines are with their cultivar")

    comparison.save(out / "comparison.html")
    save(comparison.plot(), out / "marginals.png")
    save(draw_density(pair, posteriors, x), out / "density.png")
    save(draw_responsibilities(pair, posteriors, x), out / "responsibilities.png")
    print(f"Written: comparison.html and three pictures in {out}")


def wines() -> tuple[torch.Tensor, torch.Tensor]:
    """Return two standardised measurements of each wine, and its cultivar."""
    source = load_wine()
    columns = [source.feature_names.index(name) for name in FEATURES]
    x = torch.as_tensor(source.data[:, columns])
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(source.target)


def largest_r_hat(posterior: pg.Posterior) -> float:
    # Sites are numbers by component; R-hat is of one number at a time.
    values = [posterior[site].flatten(2) for site in posterior.latents]
    return max(float(rhat(one.numpy())) for one in torch.cat(values, dim=2).unbind(2))


def agreement(found: torch.Tensor, cultivars: torch.Tensor) -> float:
    """Return the fraction of wines in the component that stands for their cultivar."""
    orders = itertools.permutations(range(3))
    return max(float((torch.tensor(order)[found] == cultivars).double().mean()) for order in orders)


def panels(names: list[str], title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.7 * len(names), 4.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for name, ax in zip(names, axes, strict=True):
        ax.set_title(name, fontsize="medium")
        ax.set_xlabel(f"{FEATURES[0]} (standardised)")
        ax.set_box_aspect(1)
    axes[0].set_ylabel(f"{FEATURES[1]} (standardised)")
    return figure, list(axes)


def draw_density(
    pair: GaussianMixture, posteriors: dict[str, pg.Posterior], x: torch.Tensor
) -> Figure:
    horizontal, vertical = (
        torch.linspace(float(low) - 0.6, float(high) + 0.6, 120, dtype=x.dtype)
        for low, high in zip(x.min(0).values, x.max(0).values, strict=True)
    )
    grid = torch.cartesian_prod(horizontal, vertical)
    # The same levels everywhere: what holds 95, 80, 50 and 20 % of the reference's probability.
    densities = {
        name: pair.predictive_log_prob(posterior, grid).exp().reshape(120, 120).T.numpy()
        for name, posterior in posteriors.items()
    }
    held = np.sort(densities["nuts"].ravel())[::-1]
    share = held.cumsum() / held.sum()
    levels = [held[np.searchsorted(share, part)] for part in (0.95, 0.8, 0.5, 0.2)]
    figure, axes = panels(
        list(posteriors), "Predictive density: contours hold 95, 80, 50 and 20 % under NUTS"
    )
    for ax, density in zip(axes, densities.values(), strict=True):
        ax.contourf(
            horizontal, vertical, density, [*levels, density.max() * 1.01], cmap="Blues", alpha=0.8
        )
        ax.contour(horizontal, vertical, density, levels, colors="#1f4e79", linewidths=0.7)
        ax.scatter(x[:, 0], x[:, 1], s=7, color="#222222", linewidth=0)
    return figure


def draw_responsibilities(
    pair: GaussianMixture, posteriors: dict[str, pg.Posterior], x: torch.Tensor
) -> Figure:
    figure, axes = panels(
        list(posteriors), "Colours mixed by responsibility; ellipses hold 80 % of a component"
    )
    colors = np.array([to_rgb(color) for color in COLORS[: pair.num_components]])
    turn = torch.linspace(0, 2 * torch.pi, 100, dtype=x.dtype)
    radius = (-2 * torch.tensor(0.2, dtype=x.dtype).log()).sqrt()
    for ax, posterior in zip(axes, posteriors.values(), strict=True):
        weights = pair.responsibilities(posterior, x, average=True).numpy()
        ax.scatter(x[:, 0], x[:, 1], s=18, c=weights @ colors, edgecolor="white", linewidth=0.3)
        locs, scales = posterior["locs"].mean((0, 1)), posterior["scales"].mean((0, 1))
        for loc, scale, color in zip(locs, scales, colors, strict=True):
            ellipse = loc[:, None] + radius * scale[:, None] * torch.stack([turn.cos(), turn.sin()])
            ax.plot(*ellipse, color=color, linewidth=1.2)
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    names = ("--chains", "--draws", "--warmup", "--steps", "--seed", "--overwrite")
    defaults = {"draws": 200, "warmup": 150, "steps": 1000}
    add_shared(parser, *names, out="runs/gaussian_mixture", **defaults)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
