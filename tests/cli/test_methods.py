"""Methods from their names and options in text."""

from typing import Any

import pytest
import torch

from ppl_gen.cli.methods import find_method, method_names
from ppl_gen.inference import NUTS, SVI, RandomWalk


def test_every_method_has_a_name() -> None:
    assert {"nuts", "hmc", "svi", "randomwalk", "gibbs", "em", "pathfinder"} <= set(method_names())
    assert all(hasattr(found, "run") for found in method_names().values())


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("nuts", {"draws": 500, "metric": "diag"}, NUTS(draws=500, metric="diag")),
        ("SVI", {"guide": "full_rank", "dtype": "float32"}, SVI("full_rank", dtype=torch.float32)),
        ("svi", {"dtype": "torch.float64"}, SVI(dtype=torch.float64)),
        ("random_walk", {}, RandomWalk()),
    ],
)
def test_options_reach_the_method(name: str, options: dict[str, Any], method: Any) -> None:
    assert find_method(name, options) == method


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nutz", {}, "unknown method 'nutz'.*'nuts'"),
        ("nuts", {"draw": 3}, "unknown option of nuts 'draw'.*'draws'"),
        ("nuts", {"draws": 0}, "draws: expected at least 1, got 0"),
        ("svi", {"guide": "flows"}, "unknown guide 'flows'.*'flow'"),
        ("svi", {"dtype": "float31"}, "unknown dtype 'float31'"),
        ("svi", {"objective": "ELBO"}, "'objective' of svi cannot be written as text"),
        ("svi", {"callback": "print"}, "'callback' of svi cannot be written as text"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(name, options)


def test_options_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"draws: expected a whole number, got 'many'"):
        find_method("nuts", {"draws": "many"})
