"""How well a decoder explains images whose latents have a normal prior and a normal guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch

__all__ = [
    "ElboTerms",
    "Encoded",
    "elbo_terms",
    "importance_log_likelihood",
    "normal_kl",
    "rows_at_once",
]

# Values that one layer may hold at a time where many latents are decoded: 4 MiB in float32.
_CHUNK = 2**20


class ElboTerms(NamedTuple):
    """The two parts of the negative evidence lower bound, for each image, in nats.

    Args:
        reconstruction: `-log p(x | z)` at one draw of `z` from the guide, `(n,)`.
        kl: Kullback-Leibler divergence from the prior to the guide, in closed form, `(n,)`.
    """

    reconstruction: torch.Tensor
    kl: torch.Tensor

    @property
    def negative_elbo(self) -> torch.Tensor:
        """Their sum, whatever `beta` is, `(n,)`."""
        return self.reconstruction + self.kl


class Encoded(NamedTuple):
    """Images with the guide's normal distribution of their latents.

    Args:
        images: Images, `(n, *image_shape)`.
        loc: Locations, `(n, latent_size)`.
        scale: Standard deviations, `(n, latent_size)`.
        decode: From latents `(*batch, n, latent_size)` to the distribution of the images.
    """

    images: torch.Tensor
    loc: torch.Tensor
    scale: torch.Tensor
    decode: Callable[[torch.Tensor], dist.TorchDistribution]


def rows_at_once(width: int) -> int:
    """Return how many latents to decode at a time, so that memory is bounded.

    Args:
        width: Largest number of values that a layer of the decoder holds for one image.
    """
    return max(1, _CHUNK // width)


def normal_kl(
    loc: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the divergence of independent normal variables from standard normal ones, in nats.

    Args:
        loc: Locations, `(*batch, latent_size)`.
        scale: Standard deviations, `(*batch, latent_size)`.
        dtype: What to sum in; None: theirs.

    Returns:
        Divergences, `(*batch,)`.

    Example:
        >>> normal_kl(torch.ones(3, 2), torch.ones(3, 2))
        tensor([1., 1., 1.])
    """
    squares = loc.square() + scale.square() - 1.0
    return (0.5 * squares - scale.log()).sum(-1, dtype=dtype)


@torch.no_grad()
def elbo_terms(batches: Iterable[Encoded], device: torch.device, seed: int) -> ElboTerms:
    """Return reconstruction cost and Kullback-Leibler divergence of each image, in float64.

    Args:
        batches: Images, a number of them at a time.
        device: Where the noise is drawn.
        seed: Seed of the draws of the latents, one for each image.
    """
    reconstruction, divergence = [], []
    generator = torch.Generator(device).manual_seed(seed)
    for images, loc, scale, decode in batches:
        noise = _noise(loc.shape, loc, generator)
        reconstruction.append(-decode(loc + scale * noise).log_prob(images).double())
        divergence.append(normal_kl(loc, scale, torch.float64))
    return ElboTerms(torch.cat(reconstruction), torch.cat(divergence))


@torch.no_grad()
def importance_log_likelihood(
    batches: Iterable[Encoded], device: torch.device, num_samples: int, rows: int, seed: int
) -> torch.Tensor:
    """Estimate the log-likelihood of each image by importance sampling from the guide, in float64.

    Args:
        batches: Images, a number of them at a time.
        device: Where the noise is drawn.
        num_samples: Number of draws of the latents for each image.
        rows: Number of latents to decode at a time.
        seed: Seed of the draws.
    """
    generator = torch.Generator(device).manual_seed(seed)
    results = []
    for images, loc, scale, decode in batches:
        at_once = max(1, rows // len(images))
        log_weights = []
        for start in range(0, num_samples, at_once):
            draws = min(at_once, num_samples - start)
            noise = _noise((draws, *loc.shape), loc, generator)
            z = loc + scale * noise
            # log p(z) - log q(z | x): the constants of the two densities cancel.
            prior_ratio = 0.5 * (noise.double().square() - z.double().square())
            prior_ratio = (prior_ratio + scale.double().log()).sum(-1)
            log_weights.append(decode(z).log_prob(images).double() + prior_ratio)
        results.append(torch.cat(log_weights).logsumexp(0) - math.log(num_samples))
    return torch.cat(results)


def _noise(shape: Sequence[int], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=like.device)
