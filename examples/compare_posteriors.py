"""Fit two models by four methods each, and see which of the posteriors can be trusted.

A linear regression on real data (442 diabetes patients, two of the measurements strongly
correlated), whose exact posterior is known, and the eight schools, whose posterior is far from
normal: both under variational inference with a mean-field and a full-rank guide, Hamiltonian Monte
Carlo and NUTS.

    python examples/compare_posteriors.py

prints for each model which posteriors can be trusted and why, and writes it as a page with figures,
and the marginals drawn over each other as a picture, into runs/compare_posteriors/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes

import ppl_gen as pg
from common import add_shared, claim_folder, fit_all, make_parser, run_as_command, save
from ppl_gen.core import Method
from ppl_gen.inference import HMC, NUTS, SVI
from ppl_gen.models import BayesianLinearRegression, EightSchools

# Total serum cholesterol (s1) and low-density lipoproteins (s2) correlate at 0.9.
FEATURES = ("bmi", "bp", "s1", "s2", "s5")


def main(arguments: list[str] | None = None) -> None:
    run_as_command(run, parse(arguments))


def run(options: argparse.Namespace) -> None:
    out = claim_folder(options.out, overwrite=options.overwrite)
    methods: dict[str, Method] = {
        "mean-field": SVI(guide="mean_field", steps=options.steps, draws=4 * options.draws),
        "full-rank": SVI(guide="full_rank", steps=options.steps, draws=4 * options.draws),
        # A dense metric lets steps of one length serve correlated weights, too.
        "hmc": HMC(
            chains=options.chains, draws=options.draws, warmup=options.warmup, metric="dense"
        ),
        # The neck of the funnel of the eight schools needs smaller steps than the usual 0.8 takes.
        "nuts": NUTS(
            chains=options.chains, draws=options.draws, warmup=options.warmup, target_accept=0.9
        ),
    }

    print("Linear regression: progression of diabetes on", ", ".join(FEATURES))
    data = diabetes()
    regression = BayesianLinearRegression(num_features=len(FEATURES))
    posteriors = fit_all(regression, data, methods, options.seed, out / "posteriors" / "regression")
    # Conjugate priors have an exact posterior, which shows that the reference is right as well.
    exact = regression.exact_posterior(**data).sample(4 * options.draws, seed=options.seed)
    draws = {site: values.unsqueeze(0) for site, values in exact.items()}
    posteriors["exact"] = pg.Posterior(
        draws=draws, latents=tuple(draws), is_mcmc=False, provenance={"method": "closed form"}
    )
    report(posteriors, out, "regression")

    print("Eight schools, non-centred")
    schools = EightSchools()
    folder = out / "posteriors" / "eight_schools"
    posteriors = fit_all(schools, EightSchools.data(), methods, options.seed, folder)
    report(posteriors, out, "eight_schools", parameters=["mu", "tau", "theta"])


def diabetes() -> dict[str, torch.Tensor]:
    """Return patients' measurements and the progression of their disease, standardised."""
    source = load_diabetes(scaled=False)
    columns = [source.feature_names.index(name) for name in FEATURES]
    x = torch.as_tensor(source.data[:, columns])
    y = torch.as_tensor(source.target)
    return {"x": (x - x.mean(0)) / x.std(0), "y": (y - y.mean()) / y.std()}


def report(
    posteriors: dict[str, pg.Posterior],
    out: Path,
    name: str,
    parameters: list[str] | None = None,
) -> None:
    comparison = pg.compare(posteriors, reference="nuts")
    print(comparison)
    page = comparison.save(out / f"{name}.html")
    picture = out / f"{name}.png"
    save(comparison.plot(parameters=parameters), picture)
    print(f"Written: {page}, {picture}\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    names = ("--chains", "--draws", "--warmup", "--steps", "--seed", "--overwrite")
    defaults = {"draws": 1000, "warmup": 1000, "steps": 2000}
    add_shared(parser, *names, out="runs/compare_posteriors", **defaults)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
