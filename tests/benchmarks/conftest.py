"""What the scripts in `benchmarks` are made of."""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """Give the modules that the scripts in `benchmarks` import from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "benchmarks")
        names = ("budget", "densities", "density_tables", "sampling", "tables", "training")
        modules = {name: importlib.import_module(f"likelihoods.{name}") for name in names}
        yield SimpleNamespace(**modules, pages=importlib.import_module("pages"))
