"""Data simulated from a model, at given values of some of its latents or none."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ppl_gen.core import SiteError
from ppl_gen.core.errors import unknown
from ppl_gen.core.pair import model_of, signature
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import (
    DrawSimplices,
    Site,
    StartValues,
    Unobserve,
    drawing,
    not_drawable,
)

__all__ = ["arguments_of", "check_drawable", "draw_sites"]


def draw_sites(
    pair: nn.Module,
    data: Mapping[str, Any],
    values: Mapping[str, torch.Tensor],
    wanted: Iterable[str],
    seed: int,
) -> dict[str, torch.Tensor]:
    """Run a model once, and draw the sites that are wanted, observed ones included.

    Args:
        pair: The pair, in double precision on the CPU.
        data: The data likewise; observed values are not looked at.
        values: Values of latent sites that are kept, by name; the others are drawn.
        wanted: Names of the sites.
        seed: Seed of the draws.

    Returns:
        Values by name, (*site).
    """
    replay = Replay(values, list(wanted))
    with isolated(seed, torch.float64), torch.no_grad(), unchecked(), drawing():
        with AnswerParams(pair), replay, DrawSimplices(), StartValues(), Unobserve():
            model_of(pair)(**data)
    return replay.found


def check_drawable(sites: Mapping[str, Site], names: Iterable[str]) -> None:
    """Refuse sites whose distributions cannot be drawn from.

    Args:
        sites: The model's sites.
        names: Names of those that have to be drawn.

    Raises:
        SiteError: Naming the first.
    """
    for name in names:
        if not sites[name].drawable:
            raise not_drawable(sites[name])


def arguments_of(
    pair: nn.Module, data: Mapping[str, Any], sites: Mapping[str, Site], named: Mapping[str, str]
) -> dict[str, str]:
    """Return the argument that holds the values of each observed site.

    Args:
        pair: The pair.
        data: Its data; a site whose argument is left out of them is taken for observed.
        sites: The sites of its model, drawn without the data's observed values.
        named: Arguments by site, where they are named otherwise than the site.

    Raises:
        SiteError: If there is no such argument.
        ValueError: If nothing is observed.
    """
    parameters = signature(pair).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in named:
        if name not in sites:
            raise unknown("observed site", name, sites)
    found = {}
    for name, site in sites.items():
        left_out = name in parameters and name not in data
        if site.kind != "observed" and name not in named and not left_out:
            continue
        argument = named.get(name, name)
        if argument not in parameters and not anything:
            raise SiteError(
                name,
                expected="an argument of the model that holds its values",
                got=f"the arguments {', '.join(parameters)}",
                remedy=f"Say which one it is: observed={{'{name}': '...'}}.",
            )
        found[name] = argument
    if not found:
        raise ValueError(
            "the model observes nothing: give values for the observed sites, which are not looked "
            "at, or name their arguments: observed={'site': 'argument'}."
        )
    return found
