"""Which numbers each position of a convolution sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["taps", "taps_of_transposed"]


def taps(
    slots: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    nothing: int,
) -> tuple[torch.Tensor, list[int]]:
    """Return the slots that a convolution sees, and the sizes of its result.

    Args:
        slots: Those of its input, `(channel, *size)`.
        kernel: Sizes of its kernel.
        stride: Steps between positions.
        padding: Places added on both sides.
        dilation: Steps between taps.
        output_padding: Of a transposed one, places added to the result at the end.
        nothing: The slot of padding.

    Returns:
        Slots, `(channel, tap, position)`, and the sizes.
    """
    around = [size for pad in reversed(padding) for size in (pad, pad)]
    padded = F.pad(slots, around, value=nothing)
    sizes = [
        (padded.shape[1 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in range(len(kernel))
    ]
    found = []
    for tap in np.ndindex(*kernel):
        part = padded
        for axis, place in enumerate(tap):
            start = place * dilation[axis]
            stop = start + stride[axis] * (sizes[axis] - 1) + 1
            index = torch.arange(start, stop, stride[axis])
            part = part.index_select(1 + axis, index)
        found.append(part.flatten(1))
    return torch.stack(found, dim=1), sizes


def taps_of_transposed(
    slots: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    nothing: int,
) -> tuple[torch.Tensor, list[int]]:
    """Return the same of a transposed convolution; see `taps`."""
    inputs = slots.shape[1:]
    sizes = [
        (inputs[a] - 1) * stride[a] - 2 * padding[a] + dilation[a] * (kernel[a] - 1)
        + output_padding[a] + 1
        for a in range(len(kernel))
    ]  # fmt: skip
    found = []
    for tap in np.ndindex(*kernel):
        part = slots
        for axis, place in enumerate(tap):
            from_start = torch.arange(sizes[axis]) + padding[axis] - place * dilation[axis]
            source = from_start // stride[axis]
            seen = (from_start % stride[axis] == 0) & (source >= 0) & (source < inputs[axis])
            part = part.index_select(1 + axis, source.clamp(0, inputs[axis] - 1))
            blank = (~seen).reshape(-1, *(1,) * (part.ndim - 2 - axis))
            part = part.masked_fill(blank, nothing)
        found.append(part.flatten(1))
    return torch.stack(found, dim=1), sizes
