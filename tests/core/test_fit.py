"""`fit` itself: nothing global changes, and a seed decides the draws."""

import random
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from ppl_gen import fit
from ppl_gen.inference import HMC, NUTS, SVI
from ppl_gen.models import BayesianLinearRegression

X = torch.linspace(-1.0, 1.0, 8).unsqueeze(-1)
DATA = {"x": X, "y": 2.0 * X[:, 0]}
PAIR = BayesianLinearRegression(num_features=1)
METHODS: list[Any] = [
    SVI(steps=3, draws=4),
    SVI(guide="full_rank", steps=3, draws=4, batch_size=3),
    NUTS(chains=2, draws=3, warmup=3),
    HMC(chains=2, draws=3, warmup=3),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("validate", [True, False])
def test_nothing_global_changes(method: Any, validate: bool) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    pyro.get_param_store()["mine"] = torch.tensor(7.0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    try:
        with pyro.validation_enabled(validate):
            fit(PAIR, DATA, method, progress=False)
            assert pyro.poutine.is_validation_enabled() == validate
            assert torch.distributions.Distribution._validate_args == validate
        assert list(pyro.get_param_store().keys()) == ["mine"]
        assert pyro.get_param_store()["mine"].item() == 7.0
    finally:
        pyro.clear_param_store()
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_seed_alone_decides_the_draws(method: Any) -> None:
    torch.manual_seed(11)
    first = fit(PAIR, DATA, method, seed=1, progress=False)
    torch.manual_seed(12)
    again = fit(PAIR, DATA, method, seed=1, progress=False)
    other = fit(PAIR, DATA, method, seed=2, progress=False)
    assert torch.equal(first["weights"], again["weights"])
    assert not torch.equal(first["weights"], other["weights"])


def test_provenance() -> None:
    result = fit(PAIR, DATA, SVI(steps=3, draws=4), seed=5, progress=False)
    facts = result.provenance
    assert facts["method"] == "SVI"
    assert facts["options"]["steps"] == 3
    assert facts["seed"] == 5
    assert facts["dtype"] == "float64"
    assert facts["device"] in ("cpu", "cuda")
    assert facts["gradient_evaluations"] == 3 * 8
    assert result.history is not None
    assert result.history.shape == (3,)


def test_data_are_not_copied_or_changed() -> None:
    x = X.clone()
    result = fit(
        PAIR, {"x": x, "y": DATA["y"]}, SVI(steps=3, batch_size=3, draws=2), progress=False
    )
    assert torch.equal(x, X)
    assert result.data is not None
    assert result.data["x"].data_ptr() == x.data_ptr()


def test_warnings_are_printed_with_the_progress_and_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = NUTS(chains=2, draws=20, warmup=20)
    silent = fit(PAIR, DATA, method, progress=False)
    assert capsys.readouterr().err == ""
    result = fit(PAIR, DATA, method)
    assert result.warnings == silent.warnings != ()
    shown = capsys.readouterr().err
    for warning in result.warnings:
        assert warning in shown
        assert f"! {warning}" in repr(result)
