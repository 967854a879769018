"""The example that a test file is about, as a module, and the folder that it is in."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="module", autouse=True)
def folder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let examples import what they share from their own folder, as they can when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "examples")
        yield


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Give `examples/NAME.py` to the tests in `test_NAME.py`."""
    name = request.path.stem.removeprefix("test_")
    path = request.config.rootpath / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
