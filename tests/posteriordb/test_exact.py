"""The exact answers, against each other, published figures and the reference draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agreement import compare_exact, threshold, worst
from exact import EXACT, eight_schools, flat_regression, normal_regression
from pairs import POSTERIORS

# Mean and sd of 90 scalars; see `agreement`.
THRESHOLD = threshold(180)


@pytest.mark.parametrize("name", EXACT)
def test_reference_draws_have_the_exact_moments(name: str, posteriordb: Path) -> None:
    posterior = POSTERIORS[name]
    exact, reference = EXACT[name](posterior.data(posteriordb)), posterior.reference(posteriordb)
    assert set(exact) == set(reference)
    assert worst(compare_exact(reference, exact)) < THRESHOLD
    # An sd that is wrong by 5 % is found, unless the tails are heavy.
    wrong = {scalar: (mean, 1.05 * sd) for scalar, (mean, sd) in exact.items()}
    assert worst(compare_exact(reference, wrong), "sd") > THRESHOLD


def test_number_of_scalars(posteriordb: Path) -> None:
    count = sum(len(EXACT[name](POSTERIORS[name].data(posteriordb))) for name in EXACT)
    assert count == 90


@pytest.mark.parametrize("rows", [20, 60])
def test_quadrature_equals_closed_form(rows: int) -> None:
    rng = np.random.default_rng(0)
    x = np.stack([np.ones(rows), rng.normal(30.0, 2.0, size=rows)], axis=1)
    y = x @ [1.0, 0.3] + rng.normal(size=rows)
    closed, found = flat_regression(x, y), normal_regression(x, y, np.zeros_like)
    for scalar, moments in closed.items():
        assert found[scalar] == pytest.approx(moments, rel=1e-6)


def test_quadrature_with_a_prior_is_conjugate_for_a_known_scale() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 2))
    y = x @ [1.0, -1.0] + rng.normal(size=20)
    mean, scale, sigma = np.array([0.5, 0.0]), np.array([0.3, 2.0]), 0.9
    precision = x.T @ x / sigma**2 + np.diag(scale**-2)
    expected = np.linalg.solve(precision, x.T @ y / sigma**2 + mean / scale**2)
    # A prior of the noise scale as narrow as the grid allows.
    found = normal_regression(x, y, lambda s: -((np.log(s / sigma) / 0.01) ** 2) / 2, mean, scale)
    for i in range(2):
        sd = np.linalg.inv(precision)[i, i] ** 0.5
        assert found[f"beta[{i + 1}]"] == pytest.approx((expected[i], sd), rel=1e-2)


def test_eight_schools_as_published(posteriordb: Path) -> None:
    name = "eight_schools-eight_schools_noncentered"
    found = eight_schools(POSTERIORS[name].data(posteriordb))
    assert found["mu"] == pytest.approx((4.3968, 3.3177), abs=1e-4)
    assert found["tau"] == pytest.approx((3.5977, 3.2200), abs=1e-4)
    assert found["theta[1]"] == pytest.approx((6.2119, 5.5931), abs=1e-4)
    assert found["theta[8]"] == pytest.approx((4.8543, 5.2908), abs=1e-4)
