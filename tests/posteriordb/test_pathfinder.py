"""Pathfinder's means against the reference draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from pairs import POSTERIORS

from ppl_gen import fit
from ppl_gen.inference import Pathfinder

NAMES = [
    "kidiq-kidscore_momhs",
    "kidiq-kidscore_interaction",
    "earnings-logearn_interaction",
    "mesquite-logmesquite",
    "nes1972-nes",
    "sblrc-blr",
]


@pytest.mark.parametrize("name", NAMES)
def test_means(name: str, posteriordb: Path) -> None:
    posterior = POSTERIORS[name]
    found = fit(posterior.pair, posterior.data(posteriordb), Pathfinder(), progress=False)
    reference = posterior.reference(posteriordb)
    for scalar, draws in posterior.scalars(found.draws, reference).items():
        known = reference[scalar]
        assert abs(draws.mean() - known.mean()) < 0.3 * known.std(), scalar
