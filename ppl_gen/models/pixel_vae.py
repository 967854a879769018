"""A variational autoencoder whose pixels are not independent given the latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_gen.core.errors import check_count
from ppl_gen.distributions import Autoregressive, Elements
from ppl_gen.distributions.discrete import check_tensor
from ppl_gen.distributions.sampling.draw import Progress
from ppl_gen.models.checks import check_weight
from ppl_gen.models.image_autoencoder import ImageAutoencoder
from ppl_gen.models.networks import GatedPixelCNN
from ppl_gen.models.pixel_values import check_pixels, draw_binary
from ppl_gen.models.sampling import sampling
from ppl_gen.models.scoring import normal_kl

__all__ = ["PixelVAE"]


class PixelVAE(ImageAutoencoder):
    r"""A variational autoencoder with a gated PixelCNN for its last layers.

    Generative story, for each image :math:`x_i`:

    .. math::
        z_i \sim \mathrm{Normal}(0, I), \qquad
        x_i \sim \prod_j p(x_{ij} \mid x_{i1}, \ldots, x_{i, j - 1}, f(z_i)),

    with :math:`f` a network that makes feature maps, which join every gate of a small PixelCNN at
    their place. The guide is amortized, as that of `VAE`.

    The PixelCNN can do without the latents, and at the start of a training, when they say little
    and cost their divergence from the prior, it learns to: they are then never used. Two remedies:

    - `free_nats`: a divergence that costs nothing, by which latents are worth using (the "free
      bits" of the second paper). In training mode

      .. math::
          \mathbb{E}_q[\log p(x \mid z)] - \max(\lambda, \mathrm{KL}(q(z \mid x), p(z)))

      is maximized, the divergence being the mean over the mini-batch. It is no tighter a bound;
      what is reported is the evidence lower bound itself.
    - A weight that rises to 1: `SVI(objective=ELBO(beta=Linear(until=0.5)))`.

    `elbo_terms` gives the divergence of each image.

    Pixels are integers as `elements` say; of binary ones also probabilities may be given, by which
    they are drawn anew for every batch, see `AutoregressiveImage`.

    Sites: "z" `(latent_size,)` and "x" `image_shape`, observed, both in the plate "data".

    Args:
        image_shape: Shape of an image: (height, width) or (channels, height, width).
        latent_size: Number of latent variables for each image.
        hidden_sizes: Sizes of the encoder's fully connected hidden layers, from the image on; the
            decoder has them in reverse order.
        elements: What the channels of a pixel are.
        features: Number of features of a layer of the PixelCNN.
        layers: Number of its layers. Few leave what is far apart to the latents.
        maps: Number of feature maps that the decoder makes, for each channel.
        free_nats: Divergence for each image that costs nothing.
        network: Encoder and decoder, "mlp" or "convolutional", see `VAE`.
        channels: Numbers of channels, for "convolutional".

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size is not positive, a name is unknown, or the image is too small for the
            convolutions.

    References:
        PixelVAE: A Latent Variable Model for Natural Images. I. Gulrajani, K. Kumar, F. Ahmed,
        A. A. Taiga, F. Visin, D. Vazquez, A. Courville, 2016. arXiv:1611.05013
        Improving Variational Inference with Inverse Autoregressive Flow. D. P. Kingma et al., 2016.
        arXiv:1606.04934 (free bits)

    Example:
        >>> pair = PixelVAE((6, 6), latent_size=2, hidden_sizes=(16,), features=8, layers=2)
        >>> images = torch.zeros(5, 6, 6)
        >>> pair.elbo_terms(images).kl.shape, pair.sample(3).shape
        (torch.Size([5]), torch.Size([3, 6, 6]))
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        latent_size: int = 20,
        hidden_sizes: Sequence[int] = (400,),
        elements: Elements = Elements(),  # noqa: B008 - it is frozen
        features: int = 32,
        layers: int = 3,
        maps: int = 4,
        free_nats: float = 0.0,
        network: str = "mlp",
        channels: Sequence[int] = (32, 64),
    ) -> None:
        super().__init__(image_shape, latent_size, hidden_sizes, network, channels)
        self.elements = elements
        self.features, self.layers = features, layers
        check_count("maps", maps)
        self.maps = maps
        check_weight("free_nats", free_nats)
        self.free_nats = free_nats
        self.add_networks(maps)
        count = maps * (self.image_shape[0] if len(self.image_shape) == 3 else 1)
        self.pixels = GatedPixelCNN(
            self.image_shape, features, layers, elements=elements, context_maps=count
        )

    def model(self, x: torch.Tensor) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            The images.
        """
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior_loc, self.prior_scale).to_event(1))
            images: torch.Tensor = pyro.sample("x", self.decode(z), obs=x)
        return images

    def guide(self, x: torch.Tensor) -> torch.Tensor:
        """Draw the latents of images from the encoder's distribution.

        In training mode a factor gives back what `free_nats` leaves free.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            The latents, `(n, latent_size)`.
        """
        loc, scale = self.encode(x)
        with pyro.plate("data", len(x)):
            z: torch.Tensor = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            if self.training and self.free_nats > 0:
                # What a guide says is taken from the bound, which below the free divergence is
                # then the same whatever the divergence is.
                free = (self.free_nats - normal_kl(loc, scale).mean()).clamp(min=0)
                pyro.factor("free_nats", free.expand(len(x)), has_rsample=True)
        return z

    def prepare(self, x: torch.Tensor) -> dict[str, Any]:
        """Draw binary pixels where their probabilities are given.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            The images by the name of the argument.
        """
        return {"x": draw_binary(x, self.elements)}

    def validate(self, x: torch.Tensor) -> None:
        """Check shape and values of images.

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self._check(x, drawn=False)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guide's distribution of the latents of images.

        Args:
            x: Images, `(*batch, *image_shape)`.

        Returns:
            Location and scale (a standard deviation), both `(*batch, latent_size)`.
        """
        check_tensor("x", x)
        features = self.elements.features(x, self.prior_loc)
        loc, log_scale = self.encoder(features).chunk(2, dim=-1)
        return loc, log_scale.exp()

    def decode(self, z: torch.Tensor) -> Autoregressive:
        """Return the distribution of images given their latents.

        Args:
            z: Latents, `(*batch, latent_size)`.

        Returns:
            A distribution with batch shape `batch` and event shape
            `image_shape`.
        """
        self.check_latents(z)
        height, width = self.image_shape[-2:]
        maps = self.decoder(z).reshape(*z.shape[:-1], -1, height, width, self.maps)
        context = maps.movedim(-1, -3).flatten(-4, -3)
        images: Autoregressive = self.pixels(context)
        return images

    def sample(
        self,
        rows: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> torch.Tensor:
        """Draw latents from their prior, and images given them.

        Args:
            rows: How many, n.
            temperature: Below 1 likelier values of a pixel are drawn more often, above 1 less.
            top_p: Only the likeliest values are drawn that together have this share of the
                probability.
            seed: Seed of the draws.
            progress: Whether to show how far and how fast it is, where it takes over two seconds.

        Returns:
            Images, `(n, *image_shape)`.

        Raises:
            TypeError: If an option is of the wrong type.
            ValueError: If an option is out of range.
        """
        check_count("rows", rows)
        options: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
        with self._sampling(rows, seed, progress=progress) as tell:
            z = torch.randn(rows, self.latent_size).to(self.prior_loc)
            return self.decode(z).sample(progress=tell, **options)

    def reconstruct(self, x: torch.Tensor, *, seed: int = 0, progress: bool = True) -> torch.Tensor:
        """Draw images at the guide's location for given ones: what they share, latents tell.

        Args:
            x: Images, `(n, *image_shape)`.
            seed: Seed of the draws.
            progress: Whether to show how far and how fast it is, where it takes over two seconds.

        Returns:
            Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with the images.
        """
        self.validate(x)
        with self._sampling(len(x), seed, progress=progress) as tell:
            loc, _ = self.encode(x.to(self.prior_loc.device))
            return self.decode(loc).sample(progress=tell)

    def _sampling(
        self, rows: int, seed: int, *, progress: bool
    ) -> AbstractContextManager[Progress]:
        count = rows * math.prod(self.image_shape)
        return sampling(self, count, unit="pixels", seed=seed, progress=progress)

    def check_scored(self, x: torch.Tensor) -> None:
        """Check images whose likelihood is wanted: pixels, not the probabilities of binary ones.

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self._check(x, drawn=True)

    def _check(self, x: torch.Tensor, *, drawn: bool) -> None:
        make = "Create the pair with image_shape="
        check_pixels(x, self.image_shape, self.elements, make, drawn=drawn)

    @property
    def width(self) -> int:
        """Largest number of values that a layer holds for one image."""
        height, width = self.image_shape[-2:]
        layer = height * width * max(2 * self.features, self.pixels.last.out_channels)
        return max(self.decoder.width, layer)
