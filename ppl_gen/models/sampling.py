"""What drawing from a pair comes with: a seed, no gradients, and how far and how fast it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_gen.core.progress import ProgressBar
from ppl_gen.core.scope import evaluating, seeded
from ppl_gen.distributions.sampling.draw import Progress

__all__ = ["sampling"]


@contextmanager
def sampling(
    pair: torch.nn.Module,
    elements: int,
    *,
    unit: str,
    real_time: float | None = None,
    seed: int,
    progress: bool,
) -> Iterator[Progress]:
    """Draw inside the block, evaluated and seeded, with a progress bar where it takes long.

    Args:
        pair: What is drawn from.
        elements: How many elements are drawn.
        unit: What the progress bar calls them.
        real_time: How many of them are heard in a second; None: none are heard.
        seed: Seed of the draws.
        progress: Whether to show a progress bar.

    Yields:
        What `Autoregressive.sample` tells how many are drawn.
    """
    bar = ProgressBar("sampling", elements, enabled=progress, unit=unit, real_time=real_time)
    with bar, seeded(seed), torch.no_grad(), evaluating(pair):
        yield lambda done, _total: bar.update(done)
