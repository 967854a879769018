"""Drawing from a network: by the compiled sampler where there is one, else by iteration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch

from ppl_gen.core.compiler.build import NoCompiler
from ppl_gen.core.scope import evaluating
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
        if not self.temperature > 0:
            msg = f"temperature: expected a positive number, got {self.temperature}."
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
            None if context is None else context.detach(),
            known,
            temperature=options.temperature,
            top_p=options.top_p,
            threads=torch.get_num_threads(),
            progress=options.progress,
        )
    )
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


@dataclass
class _Known:
    """A sampler and the weights that it was made with."""

    sampler: NativeSampler | None
    tensors: tuple[tuple[int, torch.dtype], ...]
    versions: tuple[int, ...]


_samplers: WeakKeyDictionary[AutoregressiveNetwork, _Known] = WeakKeyDictionary()


def _sampler(network: AutoregressiveNetwork) -> NativeSampler | None:
    """Return the compiled sampler of a network at its present weights; None where there is none."""
    tensors = [*network.parameters(), *network.buffers()]
    identities = tuple((id(tensor), tensor.dtype) for tensor in tensors)
    versions = tuple(tensor._version for tensor in tensors)
    known = _samplers.get(network)
    if known is not None and known.tensors == identities:
        if known.versions != versions and known.sampler is not None:
            known.sampler.refresh()
            known.versions = versions
        return known.sampler
    sampler = None
    try:
        with evaluating(network):
            sampler = NativeSampler(network)
    except (CannotPlan, NoCompiler) as reason:
        warnings.warn(
            f"{type(network).__name__} is run as a whole until its draws do not change any more, "
            f"which is slow: {reason}.",
            RuntimeWarning,
            stacklevel=2,
        )
    _samplers[network] = _Known(sampler, identities, versions)
    return sampler
