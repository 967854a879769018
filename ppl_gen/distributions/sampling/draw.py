"""Drawing from a network: by the compiled sampler where there is one, else by iteration."""

from __future__ import annotations

import copy
import math
import operator
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch

from ppl_gen.core.compiler.build import NoCompiler
from ppl_gen.core.scope import evaluating
from ppl_gen.distributions.elements import check_numbers
from ppl_gen.distributions.sampling.jacobi import (
    CHUNK,
    draw_by_iteration,
    is_fixed_point,
    probabilities,
)
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.distributions.sampling.operators import CannotPlan

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork

__all__ = ["Options", "Progress", "draw", "running_total"]

# Is told how many elements are drawn, and of how many.
Progress: TypeAlias = Callable[[int, int], object]

# Of fewer elements the network itself is run: that is done before a plan is made.
_FEW = 64
# Numbers of a network, about, that its run on a row may make to check the sampler: eight seconds
# of a WaveNet at 8 kHz and 256 levels would take 64 MiB for the last layer alone.
_MOST_CHECKED = 2**21
# Features of a layer, of which networks tell nothing, where there are fewer outputs.
_FEATURES = 64
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
        TypeError: If one is no number.
        ValueError: If one is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if not isinstance(value, int | float):
                raise TypeError(f"{name}: expected a number, got {value!r}. Give a plain float.")
        if not _LEAST_TEMPERATURE <= self.temperature < math.inf:
            msg = (
                "temperature: expected a positive number, finite and at least "
                f"{_LEAST_TEMPERATURE:g}, got {self.temperature}."
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
    if _is_compiled(network, uniforms):
        drawn = _compiled(network, uniforms, context, given, options)
        if drawn is not None:
            return drawn
    return draw_by_iteration(network, uniforms, context, given, options)[0]


def _is_compiled(network: AutoregressiveNetwork, uniforms: torch.Tensor) -> bool:
    """Return whether draws are to be made by the compiled sampler.

    A sequence has far more elements than it takes runs to be faster on the CPU, wherever the
    network is; the draws of an image stay where it is.
    """
    dtypes = {parameter.dtype for parameter in network.parameters()}
    return (
        network.is_planned
        and uniforms.shape[1] >= _FEW
        and len(uniforms) > 0
        and (uniforms.device.type == "cpu" or len(network.event_shape) == 1)
        and dtypes <= {torch.float32, torch.float64}
    )


def _compiled(
    network: AutoregressiveNetwork,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> torch.Tensor | None:
    """Return the same as `draw`, by the compiled sampler; None where there is none."""
    here = _on_cpu(network)
    sampler = _sampler(here)
    if sampler is None:
        return None
    order = here.order
    uniform = uniforms.cpu()
    told = None if context is None else context.detach().to(uniform)
    known = None if given is None else given.cpu()
    drawn = torch.empty_like(uniform)
    drawn[:, order] = torch.from_numpy(
        sampler.sample(
            uniform[:, order].numpy(),
            told,
            None if known is None else known[:, order].numpy(),
            temperature=options.temperature,
            top_p=options.top_p,
            threads=torch.get_num_threads(),
            progress=options.progress,
        )
    )
    check_numbers(drawn)
    if not sampler.is_checked and _can_be_checked(here, options):
        is_right = is_fixed_point(
            here,
            drawn[:1],
            uniform[:1],
            None if told is None else told[:1],
            None if known is None else known[:1],
            options,
        )
        if is_right:
            sampler.is_checked = True
        elif _give_up(here, sampler):
            return None
    return drawn.to(uniforms.device)


def _can_be_checked(network: AutoregressiveNetwork, options: Options) -> bool:
    """Return whether a run of the network can tell whether draws are right.

    It takes the memory that the sampler does without: of a long sequence there are too many
    numbers, of a mixture of many values too many probabilities. And where the temperature is low,
    or only some values are kept, rounding decides more than it can be held to.
    """
    elements, count = network.elements, network.order.numel()
    is_small = (
        count * max(elements.num_outputs, _FEATURES) <= _MOST_CHECKED
        and count * probabilities(elements) <= CHUNK
    )
    return is_small and options.top_p == 1 and options.temperature >= 0.1


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


# A module's class, and those of its attributes that are plain numbers or text.
_Part: TypeAlias = tuple[type, dict[str, object]]


@dataclass(frozen=True, eq=False)
class _Known:
    """A sampler, the parts and tensors that its network had, and what was in them."""

    sampler: NativeSampler | None
    parts: list[_Part]
    tensors: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


_samplers: WeakKeyDictionary[AutoregressiveNetwork, _Known] = WeakKeyDictionary()
_copies: WeakKeyDictionary[AutoregressiveNetwork, AutoregressiveNetwork] = WeakKeyDictionary()
_lock = threading.Lock()


def _sampler(network: AutoregressiveNetwork) -> NativeSampler | None:
    """Return the compiled sampler of a network at its present weights; None where there is none."""
    tensors = _tensors(network)
    with _lock:
        known = _samplers.get(network)
        parts = _parts(network)
        there = known is not None and _are_those(tensors, known) and parts == known.parts
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
            _warn(network, reason)
        values = tuple(tensor.detach().clone() for tensor in tensors)
        _samplers[network] = _Known(sampler, parts, tensors, values)
    return sampler


def _give_up(network: AutoregressiveNetwork, sampler: NativeSampler) -> bool:
    """Draw from a network without its compiled sampler from now on, and say so.

    Returns:
        Whether that is done. Where weights were changed meanwhile, as in training by another
        thread, the network tells nothing of what was drawn by the ones before.
    """
    with _lock:
        known = _samplers[network]
        if known.sampler is None:  # another thread has found it, too
            return True
        if known.sampler is not sampler or not _hold(_tensors(network), known.values):
            return False
        _samplers[network] = replace(known, sampler=None)
    _warn(
        network,
        "the compiled sampler draws other values than the network itself. Please report this, "
        "with the network",
    )
    return True


def _warn(network: AutoregressiveNetwork, reason: object) -> None:
    warnings.warn(
        f"{type(network).__name__} is run as a whole until its draws do not change any more, "
        f"which is slow: {reason}.",
        RuntimeWarning,
        stacklevel=2,
    )


def _on_cpu(network: AutoregressiveNetwork) -> AutoregressiveNetwork:
    """Return a network on the CPU: itself, or its copy, with its present weights."""
    if network.order.device.type == "cpu":
        return network
    return _copied(network)


def _copied(network: AutoregressiveNetwork) -> AutoregressiveNetwork:
    """Return the copy of a network on the CPU, made once, with its present weights."""
    tensors = _tensors(network)
    with _lock:
        found = _copies.get(network)
        alike = found is not None and _are_alike(_tensors(found), tensors)
        if found is None or not alike or _parts(found) != _parts(network):
            # Tensors that are made in inference mode are not to be written to outside it.
            with torch.inference_mode(False):
                found = _copies[network] = copy.deepcopy(network).cpu()
        with torch.no_grad():
            for own, source in zip(_tensors(found), tensors, strict=True):
                own.copy_(source)
    return found


def _tensors(network: AutoregressiveNetwork) -> tuple[torch.Tensor, ...]:
    return (*network.parameters(), *network.buffers())


def _parts(network: AutoregressiveNetwork) -> list[_Part]:
    """Return what a network is made of beside tensors, as far as it can be compared."""
    return [
        (
            type(part),
            {
                name: value
                for name, value in vars(part).items()
                if isinstance(value, bool | int | float | str) and name != "training"
            },
        )
        for part in network.modules()
    ]


def _are_those(tensors: tuple[torch.Tensor, ...], known: _Known) -> bool:
    """Return whether a network still has the tensors that its sampler was made of."""
    same = all(map(operator.is_, tensors, known.tensors))
    return same and _are_alike(tensors, known.values)


def _are_alike(some: tuple[torch.Tensor, ...], others: tuple[torch.Tensor, ...]) -> bool:
    """Return whether tensors are of the same number, types and shapes as others."""
    return [(x.dtype, x.shape) for x in some] == [(x.dtype, x.shape) for x in others]


def _hold(tensors: tuple[torch.Tensor, ...], values: tuple[torch.Tensor, ...]) -> bool:
    """Return whether tensors hold some values: what is written to `.data` leaves no other trace."""
    return all(map(torch.equal, tensors, values))
