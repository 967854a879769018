"""What `import ppl_gen` loads."""

import json
import subprocess
import sys

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
