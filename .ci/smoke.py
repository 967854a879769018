"""Import every public module of the installed ppl-gen and run a small fit."""

import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import torch

import ppl_gen as pg
from ppl_gen.inference import NUTS, SVI
from ppl_gen.models import BayesianLinearRegression

package = Path(str(pg.__file__)).resolve().parent
assert package.is_relative_to(Path(sys.prefix).resolve()), f"{package} is not in {sys.prefix}"

installed = [file.parts for file in importlib.metadata.files("ppl-gen") or []]
scripts = [parts for parts in installed if parts[0] == ".."]
assert [parts[-1] for parts in scripts] in (["ppl-gen"], ["ppl-gen.exe"]), scripts
folders = {parts[0] for parts in installed if parts not in scripts}
assert all(name.startswith("ppl_gen") for name in folders), f"the wheel also holds {folders}"
assert ("ppl_gen", "py.typed") in installed, "the wheel lacks py.typed"

modules = [
    module.name
    for module in pkgutil.walk_packages([str(package)], prefix="ppl_gen.")
    if not any(part.startswith("_") for part in module.name.split("."))
]
for name in modules:
    importlib.import_module(name)
print(f"imported {len(modules)} public modules from {package}")

generator = torch.Generator().manual_seed(0)
x = torch.randn(40, 2, generator=generator)
y = x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(40, generator=generator)
pair = BayesianLinearRegression(num_features=2)
for method in (SVI(steps=50), NUTS(chains=1, draws=50, warmup=50)):
    posterior = pg.fit(pair, {"x": x, "y": y}, method, seed=0, progress=False)
    shapes = {site: tuple(values.shape) for site, values in posterior.draws.items()}
    assert all(torch.isfinite(values).all() for values in posterior.draws.values())
    print(f"{type(method).__name__}: {shapes}")

script = Path(sys.prefix) / "bin" / "ppl-gen"
said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
print(f"the command says {said.strip()}")
