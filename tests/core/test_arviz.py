"""The ArviZ adapter, under whichever line of ArviZ is installed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray

import ppl_gen as pg
from ppl_gen.core.arviz import GROUPS, to_arviz
from ppl_gen.core.errors import SiteError
from ppl_gen.diagnostics import import_arviz
from ppl_gen.inference import NUTS

pytestmark = pytest.mark.arviz

CHAINS, DRAWS, SCHOOLS = 4, 50, 8
NAMES = [f"school {i}" for i in range(SCHOOLS)]


def eight_schools() -> dict[str, dict[str, NDArray[Any]]]:
    """Arrays of every group, with the axes of a hierarchical fit, and densities that loo takes."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=SCHOOLS)
    mu = rng.normal(scale=0.3, size=(CHAINS, DRAWS))
    theta = mu[..., None] + rng.normal(scale=0.3, size=(CHAINS, DRAWS, SCHOOLS))
    return {
        "observed_data": {"y": y},
        "posterior": {"mu": mu, "theta": theta, "matrix": rng.normal(size=(CHAINS, DRAWS, 2, 3))},
        "sample_stats": {
            "diverging": rng.uniform(size=(CHAINS, DRAWS)) < 0.1,
            "energy": rng.normal(size=(CHAINS, DRAWS)),
            "lp": rng.normal(size=(CHAINS, DRAWS)),
            "tree_depth": rng.integers(1, 5, size=(CHAINS, DRAWS)),
        },
        "log_likelihood": {"y": -0.5 * (y - theta) ** 2 - 0.5 * np.log(2 * np.pi)},
        "posterior_predictive": {"y": theta + rng.normal(size=theta.shape)},
        "prior": {"mu": rng.normal(size=(1, 20))},
        "prior_predictive": {"y": rng.normal(size=(1, 20, SCHOOLS))},
    }


DIMS = {"theta": ("school",), "y": ("school",)}
COORDS = {"school": NAMES}


@pytest.fixture
def data() -> Any:
    return to_arviz(eight_schools(), DIMS, COORDS, {"method": "NUTS", "seed": 3})


def test_container_of_the_installed_line(data: Any) -> None:
    arviz = import_arviz()
    expected = "InferenceData" if arviz.__version__ < "1" else "DataTree"
    assert type(data).__name__ == expected


def test_every_value_and_name_survives(data: Any) -> None:
    groups = eight_schools()
    for group, sites in groups.items():
        for site, values in sites.items():
            variable = data[group][site]
            np.testing.assert_array_equal(variable.values, values)
            assert variable.values.dtype == values.dtype
            sample_dims = () if group == "observed_data" else ("chain", "draw")
            assert variable.dims[: len(sample_dims)] == sample_dims
    assert data["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert data["posterior"]["matrix"].dims[2:] == ("matrix_dim_0", "matrix_dim_1")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    for group in ("posterior", "posterior_predictive", "log_likelihood", "observed_data"):
        assert data[group]["school"].values.tolist() == NAMES
    assert data["posterior"]["chain"].values.tolist() == [0, 1, 2, 3]
    written = data.groups() if callable(data.groups) else data.groups
    assert {group.strip("/") for group in written} - {""} == set(GROUPS)


def test_attributes(data: Any) -> None:
    assert data.attrs["method"] == "NUTS"
    assert data["posterior"].attrs["seed"] == 3
    nested = to_arviz(eight_schools(), attrs={"options": {"chains": 4}, "interrupted": False})
    assert json.loads(nested.attrs["options"]) == {"chains": 4}
    assert nested.attrs["interrupted"] == "false"
    with pytest.raises(TypeError, match="'options': expected a JSON value"):
        to_arviz(eight_schools(), attrs={"options": object()})


def test_summary_reads_it(data: Any) -> None:
    table = import_arviz().summary(data)
    draws = eight_schools()["posterior"]
    assert {"mu", "theta[school 0]", "theta[school 7]", "matrix[1, 2]"} <= set(table.index)
    assert len(table) == 1 + SCHOOLS + 6
    # The 1.x line answers with text, rounded to what the Monte Carlo error supports.
    np.testing.assert_allclose(float(table.loc["mu", "mean"]), draws["mu"].mean(), atol=0.05)


def test_loo_reads_it(data: Any) -> None:
    result = import_arviz().loo(data, pointwise=True)
    # Leaving an observation out can only predict it worse than the posterior that has seen it: elpd
    # is below lppd, by the effective number of parameters. theta's variance of 0.18 around y's
    # unit scale makes that number at most 8 * 0.18 = 1.44 and a little for the noise of 200 draws.
    log_likelihood = eight_schools()["log_likelihood"]["y"]
    lppd = np.log(np.exp(log_likelihood).mean(axis=(0, 1))).sum()
    elpd = float(result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd)
    assert lppd - 2.0 < elpd < lppd


# ArviZ 0.23 calls matplotlib in a way that matplotlib 3.11 deprecates.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_trace_and_energy_plots_read_it(data: Any) -> None:
    import matplotlib.pyplot

    arviz = import_arviz()
    try:
        if arviz.__version__ < "1":
            assert arviz.plot_trace(data, var_names=["mu", "theta"]).shape == (2, 2)
        else:
            assert arviz.plot_trace(data, var_names=["mu", "theta"]) is not None
        assert arviz.plot_energy(data) is not None
    finally:
        matplotlib.pyplot.close("all")


def test_rhat_and_bfmi_read_it(data: Any) -> None:
    arviz = import_arviz()
    assert arviz.rhat(data)["theta"].shape == (SCHOOLS,)
    assert arviz.bfmi(data) is not None


def test_netcdf_holds_it(data: Any, tmp_path: Path) -> None:
    import xarray

    data.to_netcdf(str(tmp_path / "fit.nc"), engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "fit.nc", group="posterior", engine="h5netcdf") as back:
        np.testing.assert_array_equal(back["theta"], eight_schools()["posterior"]["theta"])
        assert back.attrs["method"] == "NUTS"


def test_other_data_may_have_another_length() -> None:
    groups = eight_schools()
    groups["posterior_predictive"]["y"] = np.zeros((CHAINS, DRAWS, 3))
    data = to_arviz(groups, DIMS, COORDS)
    assert data["posterior_predictive"]["school"].values.tolist() == [0, 1, 2]
    assert data["posterior"]["school"].values.tolist() == NAMES


def test_log_likelihood_has_no_event_axes() -> None:
    data = to_arviz(
        {
            "observed_data": {"x": np.zeros((5, 2))},
            "log_likelihood": {"x": np.zeros((1, 4, 5))},
        },
        {"x": ("data", "pixel")},
    )
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert data["observed_data"]["x"].dims == ("data", "pixel")


def test_names_that_xarray_cannot_hold() -> None:
    data = to_arviz(
        {"posterior": {"school": np.zeros((1, 4, 3)), "local/z": np.zeros((1, 4, 3, 2))}},
        {"school": ("school",), "local/z": ("school", "axis")},
        {"school": ["a", "b", "c"]},
    )
    assert data["posterior"]["school"].dims == ("chain", "draw", "school_dim")
    assert data["posterior"]["school_dim"].values.tolist() == ["a", "b", "c"]
    assert data["posterior"]["local.z"].dims == ("chain", "draw", "school_dim", "axis")


def test_empty_groups_are_left_out() -> None:
    data = to_arviz({"posterior": {"mu": np.zeros((1, 4))}, "sample_stats": {}})
    assert "sample_stats" not in (data if hasattr(data, "children") else data.groups())


@pytest.mark.parametrize(
    ("groups", "dims", "message"),
    [
        ({"postrior": {}}, {}, "unknown group 'postrior'.*posterior"),
        ({"posterior": {}}, {}, "at least one group"),
        ({"posterior": {"mu": np.zeros(4)}}, {}, r"site 'mu': expected axes \(chain, draw"),
        ({"posterior": {"draw": np.zeros((1, 4))}}, {}, "site 'draw'.*Give the site another name"),
        (
            {"posterior": {"a/b": np.zeros((1, 4)), "a.b": np.zeros((1, 4))}},
            {},
            "site 'a.b'.*got a second",
        ),
        ({"posterior": {"mu": np.zeros((1, 4, 3))}}, {"mu": ("a", "b")}, "expected 2 event axes"),
        ({"posterior": {"mu": np.zeros((1, 4, 3, 3))}}, {"mu": ("a", "a")}, "different names"),
        (
            {"posterior": {"mu": np.zeros((1, 4)), "tau": np.zeros((1, 5))}},
            {},
            "site 'tau': expected 4 along 'draw', as site 'mu' has, got 5",
        ),
    ],
)
def test_errors_name_site_and_remedy(
    groups: dict[str, Any], dims: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        to_arviz(groups, dims)
    if message.startswith("site"):
        assert isinstance(error.value, SiteError)


# With so few draws the Pareto shapes are noise.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_a_fit_from_end_to_end() -> None:
    x = torch.linspace(-1.0, 1.0, 12)
    data = {"x": x, "y": 1.0 + 2.0 * x + 0.1 * torch.tensor([1.0, -1.0]).repeat(6)}

    def model(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(x)):
            mean = pyro.deterministic("mean", intercept + slope * x, event_dim=0)
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    posterior = pg.fit(model, data, NUTS(chains=2, draws=60, warmup=60), seed=0, progress=False)
    arviz = import_arviz()
    container = posterior.to_arviz()
    written = container.groups() if callable(container.groups) else container.groups
    assert {group.strip("/") for group in written} - {""} == set(GROUPS)
    assert set(container["posterior"].data_vars) == {"intercept", "slope", "mean"}
    assert container["posterior"]["mean"].dims == ("chain", "draw", "row")
    assert set(container["prior"].data_vars) == {"intercept", "slope"}
    for group in ("observed_data", "posterior_predictive", "log_likelihood"):
        assert set(container[group].data_vars) == {"y"}, group
        assert container[group]["y"].sizes["row"] == 12
    for statistic in ("diverging", "energy", "lp", "tree_depth", "n_steps"):
        assert container["sample_stats"][statistic].shape == (2, 60)
    assert container.attrs["method"] == "NUTS"
    # The densities that loo reads are those of the model, in the order of the data.
    mean, y = container["posterior"]["mean"].values, data["y"].numpy()
    expected = -0.5 * ((y - mean) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(container["log_likelihood"]["y"], expected, atol=1e-5)
    assert {"intercept", "mean[11]"} <= set(arviz.summary(container).index)
    assert arviz.loo(container) is not None


def test_nothing_heavy_is_imported_with_the_module() -> None:
    import subprocess

    code = (
        "import sys, ppl_gen.core.arviz\n"
        "heavy = {'arviz', 'xarray', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
