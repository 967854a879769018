"""Mini-batches of data, and the scaling that makes their gradients unbiased."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from ppl_gen.core.arguments import lengths
from ppl_gen.core.errors import did_you_mean
from ppl_gen.core.pair import prepare
from ppl_gen.core.structure import Plate, trace_sites

__all__ = ["MiniBatches", "ScalePlate", "split"]


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

    def epoch(self, *, shuffle: bool = True) -> Iterator[dict[str, Any]]:
        """Yield each row once, in batches; the order is drawn from torch's generator."""
        device = self.data[self.names[0]].device
        order = torch.randperm(self.length) if shuffle else torch.arange(self.length)
        order = order.to(device)
        for start in range(0, self.length, self.batch_size):
            yield self.rows(order[start : start + self.batch_size])

    def rows(self, index: torch.Tensor) -> dict[str, Any]:
        """Return the data with the rows of that index only."""
        rows = {name: self.data[name].index_select(0, index) for name in self.names}
        return {**self.data, **rows}


class ScalePlate(Messenger):
    """Scales the sites of a mini-batched plate by the number of batches in an epoch.

    Every batch is scaled alike, a short last one included: the mean over an epoch's batches is
    then exactly the gradient of the whole data. Scaling each by N over its own size, as a plate
    with `subsample_size` does, gives the rows of a short batch too much weight; what such a plate
    has scaled itself is taken back.

    Args:
        plate: Name of the plate.
        num_batches: Number of batches in an epoch.
    """

    def __init__(self, plate: str, num_batches: int) -> None:
        super().__init__()
        self.plate = plate
        self.num_batches = num_batches

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                own = (frame.full_size or frame.size) / frame.size
                msg["scale"] = msg["scale"] * (self.num_batches / own)


def split(
    pair: nn.Module, data: Mapping[str, Any], batch_size: int, plate: str | None = None
) -> MiniBatches:
    """Find the plate over the data's length and cut the data along it.

    The model is run on a few rows and on one row less: the plate whose size follows is the one.

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
    found: list[str] = []
    failure: Exception | None = None
    for length in dict.fromkeys(lengths(data).values()):
        if length < 2:
            continue
        names = tuple(name for name, size in lengths(data).items() if size == length)
        large = min(max(batch_size, 2), length)
        try:
            plates = [_plates(pair, data, names, rows) for rows in (large, large - 1)]
        except ValueError as error:  # these are not the rows: other values go along with them
            failure = error
            continue
        follows = [
            name
            for name, p in plates[0].items()
            if p.size == large and name in plates[1] and plates[1][name].size == large - 1
        ]
        found += follows
        if not follows or (plate is not None and plate not in follows):
            continue
        if len(follows) > 1:
            msg = (
                f"the plates {', '.join(follows)} are all over the rows of the data, and only one "
                "can be mini-batched: put the sites of all of them into one plate."
            )
            raise ValueError(msg)
        if batch_size > length:
            msg = f"batch_size {batch_size} is larger than the data, which has {length} rows."
            raise ValueError(msg)
        return MiniBatches(data, names, plate or follows[0], length, batch_size)
    if plate is not None and found:
        msg = (
            f"plate '{plate}' is not over the length of the data; {', '.join(found)} is."
            f"{did_you_mean(plate, found)}"
        )
        raise ValueError(msg)
    msg = (
        "mini-batches need a plate over the rows of the data, and the model has none: write "
        'pyro.plate("data", len(x)) around them, or leave batch_size out.'
    )
    raise ValueError(msg) from failure


def _plates(
    pair: nn.Module, data: Mapping[str, Any], names: tuple[str, ...], rows: int
) -> dict[str, Plate]:
    few = {**data, **{name: data[name][:rows] for name in names}}
    sites = trace_sites(pair, prepare(pair, few))
    return {plate.name: plate for site in sites.values() for plate in reversed(site.plates)}
