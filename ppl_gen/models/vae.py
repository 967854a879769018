"""A variational autoencoder of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_gen.distributions.discrete import check_tensor
from ppl_gen.models.checks import check_positive
from ppl_gen.models.image_autoencoder import ImageAutoencoder
from ppl_gen.models.pixels import PixelLikelihood
from ppl_gen.models.scoring import ElboTerms

__all__ = ["VAE", "ElboTerms"]


class VAE(ImageAutoencoder):
    r"""A variational autoencoder: images made by a network from a few normal variables.

    Generative story, for each image :math:`x_i`:

    .. math::
        z_i \sim \mathrm{Normal}(0, I), \qquad x_i \sim p(x \mid f(z_i)),

    with the decoder :math:`f` a neural network and the pixels independent given :math:`z_i`. The
    guide is amortized: a second network, the encoder, maps an image to the location and scale of
    a normal distribution with independent coordinates over :math:`z_i`. The weights of both are
    learned by maximizing the evidence lower bound; to MCMC they are constants.

    The likelihoods:

    - "bernoulli": pixels in [0, 1], scored by the binary cross-entropy. Gray ones may be given,
      as the usual tutorial does; that is a bound on a quantity which is no density of gray
      images, and is never to be compared with bounds for binary ones.
    - "binarized": pixels in [0, 1] are the probabilities of binary ones, which are drawn anew for
      every batch (`prepare`), so that model and guide see the same.
    - "gaussian": real numbers, with one scale for all pixels, which is learned.
    - "categorical": integers from 0 to `num_categories` - 1, each a class of its own.

    Sites: "z" `(latent_size,)` and "x" `image_shape`, observed, both in the plate "data".

    Args:
        image_shape: Shape of an image: (height, width) or (channels, height, width); any other
            with `network="mlp"`.
        latent_size: Number of latent variables for each image.
        hidden_sizes: Sizes of the encoder's fully connected hidden layers, from the image on; the
            decoder has them in reverse order.
        likelihood: "bernoulli", "binarized", "gaussian" or "categorical".
        network: "mlp" or "convolutional". The latter halves the image by a convolution for each
            of `channels`, before the fully connected layers.
        beta: Weight of the divergence from the prior in the objective; 1 is the evidence lower
            bound. Under MCMC it is a power of the prior.
        num_categories: Number of values of a pixel, for "categorical". The decoder gives so many
            numbers for each pixel, which is slow and large for many categories.
        channels: Numbers of channels, for "convolutional".
        pixel_scale: Scale (a standard deviation) that "gaussian" pixels start from.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or `beta` is not positive, a name is unknown, or the image is too
            small for the convolutions.

    References:
        Auto-Encoding Variational Bayes. D. P. Kingma, M. Welling, 2013. arXiv:1312.6114
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework.
        I. Higgins et al., ICLR 2017.
        Simple and Effective VAE Training with Calibrated Decoders. O. Rybkin, K. Daniilidis,
        S. Levine, 2020. arXiv:2006.13202 (the learned scale)

    Example:
        >>> images = torch.rand(5, 8, 8)
        >>> pair = VAE(image_shape=(8, 8), latent_size=2, hidden_sizes=(16,))
        >>> loc, scale = pair.encode(images)
        >>> loc.shape, pair.decode(loc).event_shape, pair.reconstruct(images).shape
        (torch.Size([5, 2]), torch.Size([8, 8]), torch.Size([5, 8, 8]))
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        latent_size: int = 20,
        hidden_sizes: Sequence[int] = (400,),
        likelihood: str = "bernoulli",
        network: str = "mlp",
        beta: float = 1.0,
        num_categories: int = 256,
        channels: Sequence[int] = (32, 64),
        pixel_scale: float = 0.2,
    ) -> None:
        super().__init__(image_shape, latent_size, hidden_sizes, network, channels)
        self.likelihood = likelihood
        check_positive("beta", beta)
        self.beta = beta
        self.num_categories = num_categories
        self.pixel_scale = pixel_scale
        self.pixels = PixelLikelihood(likelihood, self.image_shape, num_categories, pixel_scale)
        self.add_networks(self.pixels.num_outputs)

    def model(self, x: torch.Tensor) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            The images.
        """
        with pyro.plate("data", len(x)):
            prior = dist.Normal(self.prior_loc, self.prior_scale).to_event(1)
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", prior)
            images: torch.Tensor = pyro.sample("x", self.decode(z), obs=x)
        return images

    def guide(self, x: torch.Tensor) -> torch.Tensor:
        """Draw the latents of images from the encoder's distribution.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            The latents, `(n, latent_size)`.
        """
        loc, scale = self.encode(x)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.beta):
            z: torch.Tensor = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        return z

    def prepare(self, x: torch.Tensor) -> dict[str, Any]:
        """Draw binary pixels where the likelihood is "binarized"; else leave the images.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            The images by the name of the argument.
        """
        return {"x": self.pixels.prepare(x)}

    def validate(self, x: torch.Tensor) -> None:
        """Check shape, dtype and values of images.

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.pixels.validate(x)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guide's distribution of the latents of images.

        Args:
            x: Images, `(*batch, *image_shape)`.

        Returns:
            Location and scale (a standard deviation), both `(*batch, latent_size)`.
        """
        check_tensor("x", x)
        x = self.pixels.as_input(x, self.prior_loc)
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return loc, log_scale.exp()

    def decode(self, z: torch.Tensor) -> dist.TorchDistribution:
        """Return the distribution of images given their latents.

        Args:
            z: Latents, `(*batch, latent_size)`.

        Returns:
            A distribution with batch shape `batch` and event shape `image_shape`. See
            `mean_image` for its mean.
        """
        self.check_latents(z)
        return self.pixels.distribution(self.decoder(z))

    def mean_image(self, z: torch.Tensor) -> torch.Tensor:
        """Return the expected image given its latents, without gradients.

        Args:
            z: Latents, `(*batch, latent_size)`.

        Returns:
            Images on the scale of the data, `(*batch, *image_shape)`.
        """
        with torch.no_grad():
            return self.pixels.mean(self.decode(z.to(self.prior_loc)))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Return the expected images at the guide's location for given ones.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            Images on the scale of the data, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with the images.
        """
        self.validate(x)
        with torch.no_grad():
            return self.mean_image(self.encode(x)[0])

    def check_scored(self, x: torch.Tensor) -> None:
        """Check images whose likelihood is wanted: binary ones where it is "binarized".

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.pixels.check_scored(x)
