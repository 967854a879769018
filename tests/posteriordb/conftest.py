"""Lets the files here import each other, under pytest as in `python tests/posteriordb/table.py`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def posteriordb(shared_data: Path) -> Path:
    """The folder of the reference posteriors."""
    return shared_data / "posteriordb"
