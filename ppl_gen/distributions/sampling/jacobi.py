"""Drawing all elements at once, over and over, until they agree with each other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from ppl_gen.core.scope import evaluating

if TYPE_CHECKING:
    from ppl_gen.distributions.autoregressive import AutoregressiveNetwork
    from ppl_gen.distributions.sampling.draw import Options

__all__ = ["draw_by_iteration"]

# Probabilities that are drawn by at a time, of all elements of some rows: 64 MiB in float32.
_CHUNK = 2**24
_TELL_SECONDS = 0.25


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
    elements = network.elements
    width = elements.highest + 1
    if elements.likelihood == "logistic_mixture":  # whose components each have all values
        width *= elements.components
    width *= uniforms.shape[1]
    passes = 0
    told = time.monotonic()
    with evaluating(network):
        for rows in torch.arange(len(uniforms), device=uniforms.device).split(
            max(1, _CHUNK // width)
        ):
            active, count = rows, 0
            while len(active):
                count += 1
                before = drawn[active]
                numbers = network.numbers(
                    before.reshape(-1, *network.event_shape),
                    None if context is None else context[active],
                )
                now = network.elements.draw(
                    numbers.flatten(1, -2), uniforms[active], options.temperature, options.top_p
                )
                if given is not None:
                    known = given[active]
                    now = torch.where(known.isnan(), now, known)
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
