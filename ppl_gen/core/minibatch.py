"""Mini-batches of data, and the scaling that makes their gradients unbiased."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core.arguments import lengths
from ppl_gen.core.errors import SiteError, did_you_mean
from ppl_gen.core.pair import prepare
from ppl_gen.core.structure import Site, trace_sites

__all__ = ["MiniBatches", "ScalePlate", "epoch_seeds", "find_plate", "split"]


@dataclass(frozen=True)
class MiniBatches:
    """Data cut into mini-batches along one plate.

    Args:
        data: All of the data.
        names: Names of the values that are cut along their first axis.
        plate: Name of the plate over that axis.
        length: Length of that axis.
        batch_size: Rows in a batch; the last batch of an epoch has what is left.
    """

    data: Mapping[str, Any]
    names: tuple[str, ...]
    plate: str
    length: int
    batch_size: int

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch, the short last one included."""
        return -(-self.length // self.batch_size)

    @property
    def scale(self) -> ScalePlate:
        """The messenger to run model and guide under."""
        return ScalePlate(self.plate, self.num_batches)

    @property
    def few(self) -> dict[str, Any]:
        """Two rows of the data, to look at the sites on."""
        return self.rows(torch.arange(2, device="cpu"))

    def epoch(self, number: int | None = None, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Yield each row once, in batches.

        Args:
            number: Number of the epoch: the order of its rows follows from it and the seed alone,
                so that a run can go on in the middle of it. None: the order of the data.
            seed: The seed of the run.
        """
        order = torch.arange(self.length, device="cpu")
        if number is not None:
            generator = torch.Generator("cpu").manual_seed(epoch_seeds(seed, number, 1)[0])
            order = torch.randperm(self.length, generator=generator, device="cpu")
        order = order.to(self._device)
        for start in range(0, self.length, self.batch_size):
            yield self.rows(order[start : start + self.batch_size])

    def rows(self, index: torch.Tensor) -> dict[str, Any]:
        """Return the data with the rows of that index only."""
        index = index.to(self._device)
        rows = {name: self.data[name].index_select(0, index) for name in self.names}
        return {**self.data, **rows}

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.data[self.names[0]].device
        return device


def epoch_seeds(seed: int, number: int, count: int) -> list[int]:
    """Return seeds, each below 2**32, for what is random in the order of an epoch.

    They are hashed, because the noise of the training comes from generators seeded by `seed`.

    Args:
        seed: The seed of the run.
        number: Number of the epoch, at least 0.
        count: How many.
    """
    return [int(s) for s in np.random.SeedSequence((seed, number)).generate_state(count)]


class ScalePlate(Messenger):
    """Scales the sites of a mini-batched plate, by one factor for all batches.

    With the number of batches in an epoch as the factor, the mean over an epoch's batches is
    exactly the gradient of the whole data, a short last batch included. Scaling each by N over its
    own size, as a plate with `subsample_size` does, gives the rows of a short batch too much
    weight; what such a plate has scaled itself is taken back.

    Args:
        plate: Name of the plate.
        factor: What a row of a batch counts for: B N / M, where M of N rows are drawn for an epoch
            of B batches.
    """

    def __init__(self, plate: str, factor: float) -> None:
        super().__init__()
        self.plate = plate
        self.factor = factor

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                own = (frame.full_size or frame.size) / frame.size
                msg["scale"] = msg["scale"] * (self.factor / own)


def split(
    pair: nn.Module, data: Mapping[str, Any], batch_size: int, plate: str | None = None
) -> MiniBatches:
    """Find the plate over the data's length and cut the data along it.

    Args:
        pair: The pair.
        data: All of the data, as `bind` returns it.
        batch_size: Rows in a batch; at least 1, at most the data's length.
        plate: Name of the plate; None takes the first one over the data's length.

    Returns:
        The mini-batches.

    Raises:
        ValueError: If the batch size does not fit, or no plate, not the one named, or more than
            one is over the length of the data.
    """
    if batch_size < 1:
        msg = f"batch_size: expected at least 1, got {batch_size}."
        raise ValueError(msg)
    rows = {name: size for name, size in lengths(data).items() if size > 1}
    if not rows:
        msg = "mini-batches need at least two rows, and the data have one: leave batch_size out."
        raise ValueError(msg)
    name, names = find_plate(pair, data, rows, batch_size, plate)
    length = rows[names[0]]
    if batch_size > length:
        msg = (
            f"batch_size {batch_size} is larger than the data, which has {length} rows. Give at "
            f"most {length}, or leave batch_size out: each step then takes all of the data."
        )
        raise ValueError(msg)
    return MiniBatches(data, names, name, length, batch_size)


def find_plate(
    pair: nn.Module,
    data: Mapping[str, Any],
    rows: Mapping[str, int],
    most: int,
    plate: str | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Find the plate over the rows of data.

    The model is run on some rows and on one row less: the plate whose size follows is the one.

    Args:
        pair: The pair.
        data: The data, as `bind` returns it.
        rows: Lengths, at least 2, of the values that may be cut along their first axis, by name.
            Those of one length are cut together.
        most: Number of rows to run the model on, if there are so many.
        plate: Name of the plate; None takes the first one that is found around observed sites.

    Returns:
        The plate's name, and the names of the values whose rows it is over.

    Raises:
        ValueError: If no plate, not the one named, or more than one is over the rows.
    """
    found: list[str] = []
    own: list[str] = []
    failure: Exception | None = None
    for length in sorted(set(rows.values()), reverse=True):
        names = tuple(name for name, size in rows.items() if size == length)
        large = min(max(most, 2), length)
        try:
            few, fewer = (_run_rows(pair, data, names, count) for count in (large, large - 1))
        except ValueError as error:  # these are not the rows: other values go along with them
            failure = error
            continue
        follows = _plates_that_follow(few, fewer, large)
        if plate is None:  # a plate of latents alone, such as of groups, has no rows of data
            follows = [name for name in follows if _holds_data(few, fewer, name)]
        found += follows
        own += _plates_that_subsample(few, fewer, large)
        if not follows or (plate is not None and plate not in follows):
            continue
        if plate is None and len(follows) > 1:
            msg = (
                f"the plates {', '.join(follows)} are all over the rows of the data, and only one "
                "can be mini-batched: put the sites of all of them into one plate."
            )
            raise ValueError(msg)
        name = plate or follows[0]
        _check_inside(few, fewer, name)
        return name, names
    if own and plate in (None, *own):
        msg = (
            f"plate '{own[0]}' draws rows of its own from those that it is given, and mini-batches "
            "draw them already: leave its subsample_size out, or fit all of the data at once."
        )
        raise ValueError(msg)
    if plate is not None and found:
        msg = (
            f"plate '{plate}' is not over the length of the data; {', '.join(found)} is."
            f"{did_you_mean(plate, found)}"
        )
        raise ValueError(msg)
    if failure is not None:
        sizes = ", ".join(f"{name} has {size}" for name, size in rows.items())
        msg = (
            f"the model cannot be run on a mini-batch of the data ({sizes} rows): {failure}\n"
            "The sizes of plates have to follow the rows that the model is given, as in "
            'pyro.plate("data", len(x)).'
        )
        raise ValueError(msg) from failure
    msg = (
        "mini-batches need a plate over the rows of the data, and the model has none: write "
        'pyro.plate("data", len(x)) around them, or fit all of the data at once.'
    )
    raise ValueError(msg)


def _run_rows(
    pair: nn.Module, data: Mapping[str, Any], names: tuple[str, ...], count: int
) -> dict[str, Site]:
    few = {**data, **{name: data[name][:count] for name in names}}
    return trace_sites(pair, prepare(pair, few))


def _plates_that_follow(few: Mapping[str, Site], fewer: Mapping[str, Site], size: int) -> list[str]:
    """Return the plates whose size followed the number of rows."""
    large, small = (
        {plate.name: plate.size for site in sites.values() for plate in reversed(site.plates)}
        for sites in (few, fewer)
    )
    return [name for name in large if large[name] == size and small.get(name) == size - 1]


def _plates_that_subsample(
    few: Mapping[str, Site], fewer: Mapping[str, Site], size: int
) -> list[str]:
    """Return the plates over the rows that run only some of them."""
    large, small = (
        {p.name: p.full_size for s in sites.values() for p in s.plates if p.size < p.full_size}
        for sites in (few, fewer)
    )
    return [name for name in large if large[name] == size and small.get(name) == size - 1]


def _holds_data(few: Mapping[str, Site], fewer: Mapping[str, Site], plate: str) -> bool:
    """Return whether a plate has observed sites, or ought to have them."""
    return any(
        site.inside(plate) or (name in fewer and fewer[name].shape != site.shape)
        for name, site in few.items()
        if site.kind in ("observed", "factor")
    )


def _check_inside(few: Mapping[str, Site], fewer: Mapping[str, Site], plate: str) -> None:
    """Refuse sites that grow with the rows outside of the plate: they would not be scaled."""
    for name, site in few.items():
        grows = name in fewer and fewer[name].shape != site.shape
        if site.kind in ("latent", "discrete", "observed") and grows and not site.inside(plate):
            raise SiteError(
                name,
                expected=f"every site with a value for each row inside plate '{plate}'",
                got=f"shape {site.shape} outside of it, which mini-batches cannot scale",
                remedy=f"Indent it into `with pyro.plate('{plate}', ...)`.",
            )
