"""Drawing from a network: by the compiled sampler where there is one, else by iteration."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch

from ppl_gen.core.compiler.build import NoCompiler
from ppl_gen.core.scope import evaluating
from ppl_gen.distributions.elements import check_numbers
from ppl_gen.distributions.sampling.jacobi import draw_by_iteration
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.operators import CannotPlan

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork

__all__ = ["Options", "Progress", "draw", "running_total"]

# Is told how many elements are drawn, and of how many.
Progress: TypeAlias = Callable[[int, int], object]

# Of fewer elements the network itself is run: that is done before a plan is made.
_FEW = 64
# Of a smaller one single precision has no inverse.
_LEAST_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class Options:
    """How to draw.

    Args:
        temperature: What logits are divided by, and scales multiplied.
        top_p: Share of the probability of the values that are kept.
        progress: Is told now and then, and at the end, how many elements are drawn, and of how
            many.

    Raises:
        ValueError: If one is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if not self.temperature >= _LEAST_TEMPERATURE:
            msg = (
                f"temperature: expected a positive number, of at least {_LEAST_TEMPERATURE:g}, "
                f"got {self.temperature}."
            )
            raise ValueError(msg)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number above 0 and up to 1, got {self.top_p}.")


def draw(
    network: AutoregressiveNetwork,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    """Return the draws that uniform numbers stand for.

    Args:
        network: The network.
        uniforms: Numbers in [0, 1) of the flattened elements, `(row, element)`.
        context: What comes with each row, `(row, *context_shape)`.
        given: Elements that are known, NaN where they are not, `(row, element)`.
        options: How to draw.

    Returns:
        Draws, `(row, element)`.
    """
    compiled = (
        uniforms.shape[1] >= _FEW
        and uniforms.device.type == "cpu"
        and uniforms.dtype in (torch.float32, torch.float64)
        and len(uniforms) > 0
    )
    sampler = _sampler(network) if compiled else None
    if sampler is None:
        return draw_by_iteration(network, uniforms, context, given, options)[0]
    order = network.order
    known = None if given is None else given[:, order].numpy()
    drawn = torch.empty_like(uniforms)
    drawn[:, order] = torch.from_numpy(
        sampler.sample(
            uniforms[:, order].numpy(),
            None if context is None else context.detach().to(uniforms),
            known,
            temperature=options.temperature,
            top_p=options.top_p,
            threads=torch.get_num_threads(),
            progress=options.progress,
        )
    )
    check_numbers(drawn)
    return drawn


def running_total(progress: Progress | None, total: int) -> Progress | None:
    """Return what tells of several draws, one after the other, as of one.

    Args:
        progress: Is told how many elements are drawn, and of how many.
        total: Number of elements of all draws.
    """
    if progress is None:
        return None
    told, before = progress, 0

    def tell(done: int, of: int) -> None:
        nonlocal before
        told(before + done, total)
        if done == of:
            before += of

    return tell


@dataclass(frozen=True, eq=False)
class _Known:
    """A sampler, the tensors that its network had, and what was in them."""

    sampler: NativeSampler | None
    tensors: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


_samplers: WeakKeyDictionary[AutoregressiveNetwork, _Known] = WeakKeyDictionary()
_lock = threading.Lock()


def _sampler(network: AutoregressiveNetwork) -> NativeSampler | None:
    """Return the compiled sampler of a network at its present weights; None where there is none."""
    tensors = (*network.parameters(), *network.buffers())
    with _lock:
        known = _samplers.get(network)
        there = known is not None and _are_those(tensors, known)
        if known is not None and there and (known.sampler is None or _hold(tensors, known.values)):
            return known.sampler
        for tensor in tensors:  # a NaN times a mask's zero is not zero
            check_numbers(tensor)
        sampler = None
        try:
            # What is recorded is the network as it is, whatever is set around a draw.
            with evaluating(network), torch.autocast("cpu", enabled=False):
                if known is not None and there and known.sampler is not None:
                    sampler = known.sampler.refreshed()
                else:
                    sampler = NativeSampler(network)
        except (CannotPlan, NoCompiler) as reason:
            warnings.warn(
                f"{type(network).__name__} is run as a whole until its draws do not change any "
                f"more, which is slow: {reason}.",
                RuntimeWarning,
                stacklevel=2,
            )
        values = tuple(tensor.detach().clone() for tensor in tensors)
        _samplers[network] = _Known(sampler, tensors, values)
    return sampler


def _are_those(tensors: tuple[torch.Tensor, ...], known: _Known) -> bool:
    """Return whether a network still has the tensors that its sampler was made of."""
    return len(tensors) == len(known.tensors) and all(
        tensor is before and (tensor.dtype, tensor.shape) == (value.dtype, value.shape)
        for tensor, before, value in zip(tensors, known.tensors, known.values, strict=True)
    )


def _hold(tensors: tuple[torch.Tensor, ...], values: tuple[torch.Tensor, ...]) -> bool:
    """Return whether tensors hold some values: what is written to `.data` leaves no other trace."""
    return all(map(torch.equal, tensors, values))
