"""Data that do not fit get an error that names them."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Pair, fit
from ppl_gen.core.arguments import bind
from ppl_gen.core.pair import as_pair
from ppl_gen.inference import SVI


def model(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


GOOD = torch.zeros(3)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown name": ({"x": GOOD, "yy": GOOD}, ValueError, r"'yy'.*'x', 'y'.*Did you mean 'y'"),
    "missing": ({"y": GOOD}, ValueError, "lacks 'x'"),
    "no mapping": ([GOOD], TypeError, "dictionary by the model's arguments"),
    "NaN": (
        {"x": torch.tensor([0.0, float("nan"), 1.0])},
        ValueError,
        r"'x'.*1 values.*index \(1,\)",
    ),
    "infinite": ({"x": np.array([np.inf, 1.0])}, ValueError, "data 'x': expected finite values"),
    "words": ({"x": ["a", "b"]}, TypeError, "'x': expected numbers"),
    "empty": ({"x": torch.zeros(0)}, ValueError, "data 'x': expected at least one value"),
    "column": (
        {"x": torch.arange(3.0), "y": torch.zeros(3, 1)},
        ValueError,
        r"site 'y': .*plate 'data': shape \(3,\), got shape \(3, 3\).*x\[:, 0\]",
    ),
    "one value for all rows": (
        {"x": torch.arange(3.0), "y": torch.zeros(1)},
        ValueError,
        r"site 'y': .*for values of shape \(1,\)",
    ),
    "text": ({"x": np.array(["a", "b"])}, TypeError, "'x': expected numbers"),
    "complex": ({"x": torch.zeros(2, dtype=torch.complex64)}, TypeError, "'x': expected real"),
    "meta": ({"x": torch.zeros(2, device="meta")}, TypeError, "'x'.*on meta"),
    "unequal lengths": (
        {"x": torch.zeros(3), "y": torch.zeros(4)},
        ValueError,
        r"unequal lengths: x has 3, y has 4",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_named(name: str) -> None:
    data, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fit(model, data, SVI(steps=1), progress=False)


def test_arrays_and_lists_become_tensors_without_a_copy() -> None:
    array = np.arange(3.0)
    bound = bind(as_pair(model), {"x": array, "y": [1, 2, 3]})
    assert bound["x"].data_ptr() == array.ctypes.data
    assert bound["y"].tolist() == [1, 2, 3]
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert bind(as_pair(model), {"x": frozen})["x"].tolist() == [0, 1, 2]
    reversed_ = np.arange(3.0)[::-1]
    assert bind(as_pair(model), {"x": reversed_})["x"].tolist() == [2, 1, 0]


def test_what_is_no_pair_or_method() -> None:
    with pytest.raises(TypeError, match="expected a pair, got int"):
        fit(3, {}, SVI())
    with pytest.raises(TypeError, match="got the class Pair"):
        fit(Pair, {}, SVI())
    with pytest.raises(TypeError, match=r"Write SVI\(\) in place of SVI"):
        fit(model, {"x": GOOD}, SVI)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got 'nutz'.*HMC, NUTS, SVI.*Did you mean 'NUTS'"):
        fit(model, {"x": GOOD}, "nutz")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed"):
        fit(model, {"x": GOOD}, SVI(), seed=-1)
    with pytest.raises(ValueError, match="device 'gpu'"):
        fit(model, {"x": GOOD}, SVI(), device="gpu")
