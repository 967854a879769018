"""Drawing all elements at once, over and over, until they agree with each other."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch

from ppl_gen.core.scope import evaluating

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork
    from ppl_gen.distributions.elements import Elements
    from ppl_gen.distributions.sampling.draw import Options

__all__ = ["CHUNK", "draw_by_iteration", "is_fixed_point", "probabilities"]

CHUNK = 2**24
"""Probabilities that are drawn by at a time, of all elements of some rows: 64 MiB in float32."""
_TELL_SECONDS = 0.25
# Of so many elements one may be another for rounding: there are some ten times fewer.
_TIES = 1000


@torch.no_grad()
def draw_by_iteration(
    network: AutoregressiveNetwork,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> tuple[torch.Tensor, int]:
    r"""Return the draws that uniform numbers stand for, by Jacobi's fixed-point iteration.

    Draws are the one solution of :math:`x_i = F^{-1}(u_i \mid x_{<i})` for all i. Each pass puts
    those of the last one into the right-hand side. After t passes the first t elements are right,
    so that there are never more passes than elements, and far fewer where elements depend weakly
    on most of those before them. A row is done when a pass changes nothing.

    The arguments are those of `draw`.

    Returns:
        The draws, `(row, element)`, and the number of passes: the most of all rows.

    References:
        Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving. Song, Meng,
        Liao and Ermon, 2021. arXiv:2002.03629.
    """
    drawn = torch.zeros_like(uniforms)
    if given is not None:
        drawn = torch.where(given.isnan(), drawn, given)
    width = probabilities(network.elements) * uniforms.shape[1]
    passes = 0
    told = time.monotonic()
    with evaluating(network):
        for rows in torch.arange(len(uniforms), device=uniforms.device).split(
            max(1, CHUNK // width)
        ):
            active, count = rows, 0
            while len(active):
                count += 1
                before = drawn[active]
                now = _once(
                    network,
                    before,
                    uniforms[active],
                    None if context is None else context[active],
                    None if given is None else given[active],
                    options,
                )
                drawn[active] = now
                if count == uniforms.shape[1]:
                    break
                active = active[(now != before).any(1)]
                is_due = len(active) > 0 and time.monotonic() - told > _TELL_SECONDS
                if options.progress is not None and is_due:
                    told = time.monotonic()
                    same = (now == before)[:, network.order].cummin(1).values.sum()
                    finished = int(rows[0]) + len(rows) - len(before)
                    options.progress(finished * uniforms.shape[1] + int(same), drawn.numel())
            passes = max(passes, count)
    if options.progress is not None:
        options.progress(drawn.numel(), drawn.numel())
    return drawn, passes


@torch.no_grad()
def is_fixed_point(
    network: AutoregressiveNetwork,
    drawn: torch.Tensor,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> bool:
    """Return whether draws are those of the network itself, but for what rounding explains.

    They are where each element is the one that the network, given the others, has it be: the first
    then is right, so the second, and so on. One run of the network says of which it is not. Where
    that is more than a tie now and then, a run in double precision says how many are to be expected
    by the network's own rounding: of large weights, many.

    Args:
        network: The network.
        drawn: The draws, `(row, element)`.
        uniforms: As `draw` takes them, like all that follows.
        context: What comes with each row.
        given: Elements that are known.
        options: How they were drawn.
    """
    about = uniforms, context, given, options
    with evaluating(network):
        own = _once(network, drawn, *about)
        different = int((own != drawn).sum())
        most = 1 + drawn.numel() // _TIES
        if different <= most or drawn.dtype == torch.float64:
            return different <= most
        precise = copy.deepcopy(network).double()
    told = None if context is None else context.double()
    known = None if given is None else given.double()
    try:
        wide = _once(precise, drawn.double(), uniforms.double(), told, known, options)
    except RuntimeError:  # it has a dtype written in it: nothing is known of its rounding
        return False
    return different <= most + 3 * int((wide != own).sum())


def probabilities(elements: Elements) -> int:
    """Return how many probabilities an element is drawn by: of all values, of each component."""
    values = elements.highest + 1
    return values * elements.components if elements.likelihood == "logistic_mixture" else values


def _once(
    network: AutoregressiveNetwork,
    x: torch.Tensor,
    uniforms: torch.Tensor,
    context: torch.Tensor | None,
    given: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    """Return all elements, each drawn given those before it in x, `(row, element)`."""
    with torch.autocast(x.device.type, enabled=False):
        numbers = network.numbers(x.reshape(-1, *network.event_shape), context)
    now = network.elements.draw(
        numbers.flatten(1, -2), uniforms, options.temperature, options.top_p
    )
    return now if given is None else torch.where(given.isnan(), now, given)
