"""Drawing from a network: by the compiled sampler where there is one, else element by element."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from ppl_gen.core.compiler.build import NoCompiler
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.plan import CannotPlan

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork

__all__ = ["Options", "draw", "draw_naively"]

# Of fewer elements the network itself is run for each: that is done before a plan is made.
_FEW = 64


@dataclass(frozen=True)
class Options:
    """How to draw.

    Args:
        temperature: What logits are divided by, and scales multiplied.
        top_p: Share of the probability of the values that are kept.

    Raises:
        ValueError: If one is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

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
    if uniforms.shape[1] < _FEW or uniforms.device.type != "cpu" or not len(uniforms):
        return draw_naively(network, uniforms, context, given, options)
    sampler = _sampler(network)
    if sampler is None:
        return draw_naively(network, uniforms, context, given, options)
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
        )
    )
    return drawn


@torch.no_grad()
def draw_naively(
    network: AutoregressiveNetwork,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    """Return the same by a run of the network for each element."""
    rows = len(uniforms)
    drawn = torch.zeros_like(uniforms)
    for place in network.order.tolist():
        numbers = network.numbers(drawn.reshape(rows, *network.event_shape), context)
        here = numbers.reshape(rows, -1, numbers.shape[-1])[:, place]
        value = network.elements.draw(here, uniforms[:, place], options.temperature, options.top_p)
        if given is not None:
            value = torch.where(given[:, place].isnan(), value, given[:, place])
        drawn[:, place] = value
    return drawn


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
    training = network.training
    sampler = None
    try:
        sampler = NativeSampler(network.eval())
    except (CannotPlan, NoCompiler) as reason:
        warnings.warn(
            f"{type(network).__name__} is run anew for each element, which is slow: {reason}.",
            RuntimeWarning,
            stacklevel=2,
        )
    finally:
        network.train(training)
    _samplers[network] = _Known(sampler, identities, versions)
    return sampler
