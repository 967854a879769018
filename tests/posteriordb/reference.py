"""A posterior of posteriordb: its model, its data, and reference draws by site and by scalar.

Sites are named as posteriordb names its parameters, so that one rule maps them: the site "sigma"
of shape () is the scalar "sigma", the site "beta" of shape (n,) the scalars "beta[1]" to "beta[n]".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Draws", "ReferencePosterior", "tensor"]

Draws = dict[str, NDArray[np.float64]]
Sites = dict[str, torch.Tensor]
Data = dict[str, Any]


def _same(sites: Sites, data: Data) -> Sites:
    return sites


@dataclass(frozen=True)
class ReferencePosterior:
    """A Pyro pair of which 10,000 nearly independent posterior draws are known.

    Args:
        name: posteriordb's name.
        pair: The model in plain Pyro, or a pair.
        prepare: Turns posteriordb's data into that of the model.
        latents: From posteriordb's parameters by site, (*batch, *site), and the model's data to
            the latent sites; needed where the model has another parametrisation and the
            parameters are deterministic sites.
        without_moments: Scalars whose distribution has no finite variance.
    """

    name: str
    pair: Any
    prepare: Callable[[Mapping[str, Any]], Data]
    latents: Callable[[Sites, Data], Sites] = _same
    without_moments: tuple[str, ...] = ()

    def data(self, folder: Path) -> Data:
        """Return the data by the names of the model's arguments.

        Args:
            folder: The folder that holds a folder for each posterior.
        """
        return self.prepare(json.loads((folder / self.name / "data.json").read_text()))

    def reference(self, folder: Path) -> Draws:
        """Return the reference draws by scalar, (10 chains, 1000 draws) each."""
        with np.load(folder / self.name / "reference.npz") as arrays:
            return {name: arrays[name] for name in arrays.files}

    def reference_latents(self, folder: Path) -> Sites:
        """Return the reference draws of the model's latent sites, (10, 1000, *site)."""
        scalars = {name: torch.from_numpy(draws) for name, draws in self.reference(folder).items()}
        sites: Sites = {}
        for name in dict.fromkeys(scalar.partition("[")[0] for scalar in scalars):
            elements = [scalar for scalar in scalars if scalar.startswith(f"{name}[")]
            vector = [scalars[f"{name}[{i + 1}]"] for i in range(len(elements))]
            sites[name] = torch.stack(vector, dim=-1) if vector else scalars[name]
        return self.latents(sites, self.data(folder))

    @staticmethod
    def scalars(draws: Mapping[str, torch.Tensor], names: Mapping[str, Any]) -> Draws:
        """Return draws by scalar.

        Args:
            draws: Draws by site, (chain, draw, *site), as a posterior holds them.
            names: The scalars' names, as keys.

        Returns:
            One array (chain, draw) for each name.
        """
        scalars = {}
        for name in names:
            site, _, index = name.rstrip("]").partition("[")
            value = draws[site].double()
            scalars[name] = (value[:, :, int(index) - 1] if index else value).numpy()
        return scalars


def tensor(values: Any) -> torch.Tensor:
    """Return numbers as a tensor in float64."""
    return torch.tensor(values, dtype=torch.float64)
