"""What variational autoencoders of images share: their networks, their prior, and their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import pyro.distributions as dist
import torch

from ppl_gen.core.errors import check_count, check_counts
from ppl_gen.core.pair import Pair
from ppl_gen.distributions.discrete import check_tensor
from ppl_gen.models.networks import image_decoder, image_encoder
from ppl_gen.models.scoring import (
    ElboTerms,
    Encoded,
    elbo_terms,
    importance_log_likelihood,
    rows_at_once,
)

__all__ = ["ImageAutoencoder"]


class ImageAutoencoder(Pair, ABC):
    """A pair of images with standard normal latents, of which an encoder is the guide.

    Args:
        image_shape: Shape of an image.
        latent_size: Number of latent variables for each image.
        hidden_sizes: Sizes of the encoder's fully connected hidden layers, from the image on; the
            decoder has them in reverse order.
        network: "mlp" or "convolutional".
        channels: Numbers of channels, for "convolutional".

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size is not positive.
    """

    prior_loc: torch.Tensor
    prior_scale: torch.Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_size: int,
        hidden_sizes: Sequence[int],
        network: str,
        channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.image_shape = check_counts("image_shape", image_shape)
        check_count("latent_size", latent_size)
        self.latent_size = latent_size
        self.hidden_sizes = check_counts("hidden_sizes", hidden_sizes, least=0)
        self.network = network
        self.channels = check_counts("channels", channels)

    def add_networks(self, num_outputs: int) -> None:
        """Add encoder, decoder and prior.

        Args:
            num_outputs: Numbers that the decoder gives for each pixel.

        Raises:
            ValueError: If the network is unknown, or the image too small for its convolutions.
        """
        # Location and scale come from one layer: one product instead of two.
        self.encoder = image_encoder(
            self.network, self.image_shape, self.channels, self.hidden_sizes, 2 * self.latent_size
        )
        self.decoder = image_decoder(
            self.network,
            self.latent_size,
            self.hidden_sizes,
            self.channels,
            self.image_shape,
            num_outputs,
        )
        self.register_buffer("prior_loc", torch.zeros(self.latent_size), persistent=False)
        self.register_buffer("prior_scale", torch.ones(self.latent_size), persistent=False)

    @abstractmethod
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return location and scale of the guide, `(*batch, latent_size)` both."""

    @abstractmethod
    def decode(self, z: torch.Tensor) -> dist.TorchDistribution:
        """Return the distribution of images given their latents, `(*batch, latent_size)`."""

    @abstractmethod
    def check_scored(self, x: torch.Tensor) -> None:
        """Refuse images that have no likelihood, such as gray ones where it is of binary ones.

        Raises:
            SiteError: If something is wrong with them.
        """

    def check_latents(self, z: torch.Tensor) -> None:
        """Refuse latents of another size.

        Args:
            z: What should be latents, `(*batch, latent_size)`.

        Raises:
            TypeError: If they are no tensor.
            ValueError: If they have another size.
        """
        check_tensor("z", z)
        if z.shape[-1:] != (self.latent_size,):
            msg = f"z: expected shape (*batch, {self.latent_size}), got {tuple(z.shape)}."
            raise ValueError(msg)

    @property
    def width(self) -> int:
        """Largest number of values that a layer holds for one image."""
        return self.decoder.width

    def elbo_terms(self, x: torch.Tensor, *, seed: int = 0) -> ElboTerms:
        """Return reconstruction cost and Kullback-Leibler divergence of each image.

        Args:
            x: Images, `(n, *image_shape)`; binary ones, not their probabilities, where the
                likelihood is of binary ones.
            seed: Seed of the draws of `z`, one for each image.

        Returns:
            Both parts of the negative evidence lower bound, without gradients, in float64.

        Raises:
            SiteError: If something is wrong with the images.

        Example:
            >>> from ppl_gen.models import VAE
            >>> terms = VAE((8, 8), latent_size=2).elbo_terms(torch.rand(5, 8, 8))
            >>> terms.negative_elbo.shape
            torch.Size([5])
        """
        self.check_scored(x)
        batches = self._encoded(x, rows_at_once(self.width))
        return elbo_terms(batches, self.prior_loc.device, seed)

    def importance_log_likelihood(
        self, x: torch.Tensor, num_samples: int = 500, *, seed: int = 0
    ) -> torch.Tensor:
        r"""Estimate the log-likelihood of each image by importance sampling from the guide.

        With :math:`z_k \sim q(z \mid x)`

        .. math::
            \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K \frac{p(x \mid z_k) \, p(z_k)}
            {q(z_k \mid x)},

        which is a lower bound in expectation for every K, tighter for a larger one. It does not
        depend on the weight of the divergence in training. Memory is bounded, whatever the number
        of images and samples.

        Args:
            x: Images, `(n, *image_shape)`; binary ones, not their probabilities, where the
                likelihood is of binary ones.
            num_samples: Number of draws of `z` for each image.
            seed: Seed of the draws.

        Returns:
            Log-likelihoods in nats, `(n,)`, in float64.

        Raises:
            SiteError: If something is wrong with the images.
            ValueError: If the number of samples is not positive.

        References:
            Importance Weighted Autoencoders. Y. Burda, R. Grosse, R. Salakhutdinov, 2015.
            arXiv:1509.00519

        Example:
            >>> from ppl_gen.models import VAE
            >>> VAE((8, 8), latent_size=2).importance_log_likelihood(torch.rand(5, 8, 8)).shape
            torch.Size([5])
        """
        check_count("num_samples", num_samples)
        self.check_scored(x)
        rows = rows_at_once(self.width)
        batches = self._encoded(x, rows // num_samples)
        return importance_log_likelihood(batches, self.prior_loc.device, num_samples, rows, seed)

    def _encoded(self, x: torch.Tensor, rows: int) -> Iterator[Encoded]:
        """Yield images with the guide's location and scale, a number of rows at a time."""
        for images in x.split(max(1, rows)):
            images = images.to(self.prior_loc.device)
            if images.is_floating_point():
                images = images.to(self.prior_loc.dtype)
            yield Encoded(images, *self.encode(images), self.decode)
