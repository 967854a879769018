"""Normals that are diagonal but for a few directions, and mixtures of them, against PyTorch's."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ppl_gen.inference.guides import NormalMixtureGuide
from ppl_gen.inference.vi.low_rank import LowRankNormal


def random_normal(dim: int, rank: int, seed: int) -> LowRankNormal:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(noise(dim, rank)).Q
    core = noise(rank, rank).tril(-1) + torch.diag(noise(rank).exp())
    return LowRankNormal(noise(dim), noise(dim).exp(), basis, core)


def dense(normal: LowRankNormal) -> MultivariateNormal:
    inside = normal.core @ normal.core.mT - torch.eye(len(normal.core), dtype=torch.float64)
    standard = torch.eye(len(normal.loc), dtype=torch.float64)
    standard = standard + normal.basis @ inside @ normal.basis.mT
    covariance = normal.scale[:, None] * standard * normal.scale
    return MultivariateNormal(normal.loc, (covariance + covariance.mT) / 2)


SIZES = [(1, 1), (3, 3), (5, 0), (30, 12), (200, 12)]


@pytest.mark.parametrize(("dim", "rank"), SIZES)
def test_density_and_draws_are_those_of_the_dense_normal(dim: int, rank: int) -> None:
    normal = random_normal(dim, rank, seed=dim)
    same = dense(normal)
    noise = torch.randn(50, dim, dtype=torch.float64)
    draws = normal.draw(noise)
    torch.testing.assert_close(normal.log_prob(draws), same.log_prob(draws))
    torch.testing.assert_close(normal.log_prob_of(noise), same.log_prob(draws))
    # Also far from where it draws.
    torch.testing.assert_close(normal.log_prob(10 * noise), same.log_prob(10 * noise))
    # Draws are linear in the noise, by a matrix whose square is the covariance.
    factor = normal.draw(torch.eye(dim, dtype=torch.float64)) - normal.loc
    torch.testing.assert_close(factor.mT @ factor, same.covariance_matrix)


def test_the_mixture_is_in_equal_parts_of_any_ranks() -> None:
    normals = [random_normal(4, rank, seed=rank) for rank in (0, 2, 4)]
    guide = NormalMixtureGuide.of(normals)
    assert (guide.components, guide.dim, guide.rank) == (3, 4, 4)
    parts = [dense(normal) for normal in normals]
    mixture = MixtureSameFamily(
        Categorical(torch.ones(3, dtype=torch.float64)),
        MultivariateNormal(
            torch.stack([part.loc for part in parts]),
            torch.stack([part.covariance_matrix for part in parts]),
        ),
    )
    vectors = mixture.sample((100,))
    torch.testing.assert_close(guide.log_prob(vectors), mixture.log_prob(vectors))


def test_draws_of_the_mixture() -> None:
    """Well apart, so that each draw tells which normal it is of."""
    eye = torch.eye(1, dtype=torch.float64)
    places = torch.tensor([-100.0, 0.0, 300.0], dtype=torch.float64)
    normals = [LowRankNormal(place[None], eye[0], eye[:, :0], eye[:0, :0]) for place in places]
    guide = NormalMixtureGuide.of(normals)
    draws = guide.rsample(6000)[:, 0]
    nearest = (draws[:, None] - places).abs().argmin(dim=-1)
    counts = torch.bincount(nearest, minlength=3)
    # Binomial: the sd of a count is sqrt(6000 * 2 / 9) = 36.5; four of these.
    assert ((counts - 2000).abs() < 4 * 36.5).all()
    # In random order: the first thousand have as many of each, but for four sds of 14.9.
    assert ((torch.bincount(nearest[:1000], minlength=3) - 333).abs() < 4 * 14.9).all()
    centred = draws - places[nearest]
    assert centred.mean().abs() < 4 / math.sqrt(6000)
    assert centred.std() == pytest.approx(1.0, abs=4 / math.sqrt(2 * 6000))
    in_order = guide.rsample_each([2, 0, 3])[:, 0]
    assert (in_order - places[[0, 0, 2, 2, 2]]).abs().max() < 6
