"""Steps that find their own size and number, on objectives whose optimum is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppl_gen.inference.training.course import Fixed, still_falling
from ppl_gen.inference.training.self_tuned import SelfTuned
from ppl_gen.inference.training.stationarity import effective_sizes, split_rhat

CENTRE = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
WIDTH = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)


def loss(point: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A quadratic whose minimum is 0 at the centre, with a noisy gradient."""
    return 0.5 * ((point - CENTRE) / WIDTH).square().sum() + (noise * (point - CENTRE)).sum()


def run(scale: float, limit: int = 20_000) -> tuple[SelfTuned, nn.Parameter]:
    """Descend with gradients whose noise has that standard deviation."""
    torch.manual_seed(0)
    point = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([point], lr=1.0)

    def evaluate(number: int) -> np.ndarray[Any, Any]:
        generator = torch.Generator().manual_seed(number)
        noise = scale * torch.randn(16, 3, generator=generator, dtype=torch.float64)
        return np.asarray([loss(point.detach(), row).item() for row in noise])

    course = SelfTuned(
        optimizer, [point], evaluate, tolerance=0.01, interval=100, limit=limit, can_average=True
    )
    while not course.ended:
        course.before()
        optimizer.zero_grad()
        value = loss(point, scale * torch.randn(3, dtype=torch.float64))
        value.backward()
        optimizer.step()
        course.after(value.item())
    course.finish()
    return course, point


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_it_converges_to_the_tolerance(scale: float) -> None:
    """Single iterates of large noise are further from the minimum than the tolerance, 0.01 nats.

    The average is held to ten times that: the error of its own estimate stops the course.
    """
    course, point = run(scale)
    assert course.converged
    assert course.verdict(np.zeros(1)) == (True, ())
    assert loss(point.detach(), torch.zeros(3)).item() < 0.1


def test_it_says_that_it_has_not_converged() -> None:
    course, _ = run(1.0, limit=450)
    converged, warnings = course.verdict(np.zeros(1))
    assert converged is False
    assert "Not converged after 450 steps" in warnings[0]


@pytest.mark.parametrize("walk", [False, True])
def test_rhat_and_size_of_noise_and_of_a_walk(walk: bool) -> None:
    """400 independent numbers: R-hat within 1 + 4 / n, and a size that is n but for its error.

    The variance of 20 means has a relative standard deviation of sqrt(2 / 19) = 0.32, so that the
    size is between 1 / 2.3 and 1 of n. A random walk is worth next to nothing.
    """
    steps = np.random.default_rng(0).standard_normal((400, 50))
    sequence = steps.cumsum(0) if walk else steps
    rhat, size = split_rhat(sequence), effective_sizes(sequence)
    if walk:
        assert np.median(rhat) > 1.2
        assert np.median(size) < 25
    else:
        assert np.median(rhat) < 1.02
        assert np.median(size) > 400 / 2.3
    assert split_rhat(np.ones((8, 1))).item() == 1.0
    assert effective_sizes(np.ones((40, 1))).item() == 40


def test_a_loss_that_falls_is_told_from_noise() -> None:
    noise = np.random.default_rng(0).standard_normal(1000)
    assert still_falling(noise) == 0.0
    # Over the halves it falls by 1, where the error of the means is 0.06.
    assert still_falling(noise - np.linspace(0, 2, 1000)) == pytest.approx(1.0, abs=0.3)
    assert still_falling(noise[:50]) is None


def test_fixed_steps_follow_the_schedule() -> None:
    point = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([point], lr=0.5)
    course = Fixed(optimizer, 4, None, 0.01)
    rates = []
    while not course.ended:
        course.before()
        rates.append(optimizer.param_groups[0]["lr"])
        course.after(0.0)
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.25 * (1 + math.cos(math.pi / 2))])


def test_a_scheduler_of_the_users_decides() -> None:
    point = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([point], lr=1.0)
    course = Fixed(optimizer, 3, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), 0.01)
    rates = []
    while not course.ended:
        course.before()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.after(0.0)
    assert rates == [1.0, 0.5, 0.25]
