"""Running a model at given values of its latent sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

__all__ = ["Replay"]


class Replay(Messenger):
    """Gives latent sites their values and keeps the values of the sites asked for.

    Args:
        values: Values of latent sites by name; other latent sites are drawn.
        wanted: Names of the sites to keep.
    """

    def __init__(self, values: Mapping[str, torch.Tensor], wanted: Collection[str] = ()) -> None:
        super().__init__()
        self.values = values
        self.wanted = wanted
        self.found: dict[str, torch.Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.wanted:
            self.found[msg["name"]] = msg["value"]
