"""What `import ppl_gen` loads, and what the package needs installed."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

HEAVY = {"arviz", "matplotlib", "pandas", "scipy", "sklearn", "torchvision", "xarray"}

SCRIPT = """
import json
import sys


def packages():
    return {name.split(".")[0] for name in sys.modules}


import torch
import pyro
before = packages()
import ppl_gen
from ppl_gen.inference import HMC, NUTS, SVI
from ppl_gen.models import VAE, BayesianLinearRegression
added = packages() - before
import pandas
control = packages() - before - added
print(json.dumps({"added": sorted(added), "control": sorted(control)}))
"""


def test_importing_the_package_leaves_heavy_libraries_alone() -> None:
    """They are loaded where they are used; importing pandas shows that this would be seen."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert "ppl_gen" in loaded["added"]
    assert not HEAVY & set(loaded["added"])
    assert "pandas" in loaded["control"]


def test_what_the_package_imports_is_declared(root: Path) -> None:
    """Else an installation without the tools for development fails where this one works."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {re.split(r"[><=~\[ ]", line)[0] for line in settings["project"]["dependencies"]}
    distributions = importlib.metadata.packages_distributions()
    imported = {name for file in (root / "ppl_gen").rglob("*.py") for name in imports(file)}
    others = imported - set(sys.stdlib_module_names) - {"ppl_gen"}
    assert {"pyro", "torch"} <= others
    undeclared = {
        name
        for name in others
        if not declared & {title.lower() for title in distributions.get(name, [name])}
    }
    assert not undeclared


def imports(file: Path) -> Iterator[str]:
    """The top-level packages that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
