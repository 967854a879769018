"""A variational autoencoder of images that is told what they are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_gen.core.errors import check_count, check_counts
from ppl_gen.core.pair import Pair
from ppl_gen.models.checks import (
    check_classes,
    check_condition,
    check_positive,
)
from ppl_gen.models.networks import image_decoder, image_encoder
from ppl_gen.models.pixels import PixelLikelihood
from ppl_gen.models.scoring import (
    ElboTerms,
    Encoded,
    elbo_terms,
    importance_log_likelihood,
    rows_at_once,
)

__all__ = ["ConditionalVAE"]


class ConditionalVAE(Pair):
    r"""A conditional variational autoencoder: images of a given class, or given any other vector.

    Generative story, for each image :math:`x_i` with its condition :math:`y_i`:

    .. math::
        z_i \sim \mathrm{Normal}(0, I), \qquad x_i \sim p(x \mid f(z_i, y_i)),

    with the decoder :math:`f` a neural network and the pixels independent given both. The guide is
    amortized: the encoder maps image and condition to the location and scale of a normal
    distribution with independent coordinates over :math:`z_i`. What the condition says of an image
    the latents need not say again, and the prior makes it costly for them to: of digits given their
    class, they come to hold the style. Encoding an image with its own class, and decoding with
    another one, transfers the style.

    A condition is a class, an integer from 0 to `condition_size` - 1, which is a vector of a one
    among zeros to the networks; or a vector of `condition_size` real numbers.

    The paper lets the prior of the latents depend on the condition, too. Here it does not, as in
    its simplified form: latents mean the same under every condition.

    Sites: "z" `(latent_size,)` and "x" `image_shape`, observed, both in the plate "data".

    Args:
        image_shape: Shape of an image: (height, width) or (channels, height, width); any other
            with `network="mlp"`.
        condition_size: Number of classes, or size of the vectors.
        latent_size: Number of latent variables for each image.
        hidden_sizes: Sizes of the encoder's fully connected hidden layers, from the image on; the
            decoder has them in reverse order. The condition joins at the first of them; those after
            it let style and class act together.
        likelihood: "bernoulli", "binarized", "gaussian" or "categorical", see `VAE`.
        network: "mlp" or "convolutional", see `VAE`.
        beta: Weight of the divergence from the prior in the objective; 1 is the evidence lower
            bound. Under MCMC it is a power of the prior.
        num_categories: Number of values of a pixel, for "categorical".
        channels: Numbers of channels, for "convolutional".
        pixel_scale: Scale (a standard deviation) that "gaussian" pixels start from.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or `beta` is not positive, a name is unknown, or the image is too
            small for the convolutions.

    References:
        Learning Structured Output Representation using Deep Conditional Generative Models. K. Sohn,
        H. Lee, X. Yan, NeurIPS 2015.
        Semi-Supervised Learning with Deep Generative Models. D. P. Kingma, D. J. Rezende,
        S. Mohamed, M. Welling, 2014. arXiv:1406.5298 (styles and classes apart)

    Example:
        >>> images, labels = torch.rand(5, 8, 8), torch.tensor([0, 1, 2, 0, 1])
        >>> pair = ConditionalVAE((8, 8), condition_size=3, latent_size=2, hidden_sizes=(16,))
        >>> loc, scale = pair.encode(images, labels)
        >>> loc.shape, pair.sample(labels).shape, pair.reconstruct(images, labels).shape
        (torch.Size([5, 2]), torch.Size([5, 8, 8]), torch.Size([5, 8, 8]))
        >>> every_class = pair.mean_image(loc[:, None], torch.arange(3))  # the same style
        >>> every_class.shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        condition_size: int = 10,
        latent_size: int = 20,
        hidden_sizes: Sequence[int] = (400, 400),
        likelihood: str = "bernoulli",
        network: str = "mlp",
        beta: float = 1.0,
        num_categories: int = 256,
        channels: Sequence[int] = (32, 64),
        pixel_scale: float = 0.2,
    ) -> None:
        super().__init__()
        self.image_shape = check_counts("image_shape", image_shape)
        check_count("condition_size", condition_size)
        self.condition_size = condition_size
        check_count("latent_size", latent_size)
        self.latent_size = latent_size
        self.hidden_sizes = check_counts("hidden_sizes", hidden_sizes, least=0)
        self.likelihood = likelihood
        self.network = network
        check_positive("beta", beta)
        self.beta = beta
        self.num_categories = num_categories
        self.channels = check_counts("channels", channels)
        self.pixel_scale = pixel_scale

        self.pixels = PixelLikelihood(likelihood, self.image_shape, num_categories, pixel_scale)
        self.encoder = image_encoder(
            network,
            self.image_shape,
            self.channels,
            self.hidden_sizes,
            2 * latent_size,
            condition_size,
        )
        self.decoder = image_decoder(
            network,
            latent_size,
            self.hidden_sizes,
            self.channels,
            self.image_shape,
            self.pixels.num_outputs,
            condition_size,
        )
        self.prior_loc: torch.Tensor
        self.prior_scale: torch.Tensor
        self.register_buffer("prior_loc", torch.zeros(latent_size), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_size), persistent=False)

    def model(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their conditions, `(n,)` integers or `(n, condition_size)` real numbers.

        Returns:
            The images.
        """
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", self.prior())
            images: torch.Tensor = pyro.sample("x", self.decode(z, y), obs=x)
        return images

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Draw the latents of images from the encoder's distribution.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their conditions, `(n,)` or `(n, condition_size)`.

        Returns:
            The latents, `(n, latent_size)`.
        """
        loc, scale = self.encode(x, y)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.beta):
            z: torch.Tensor = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        return z

    def prepare(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        """Draw binary pixels where the likelihood is "binarized"; else leave the images.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their conditions.

        Returns:
            Both by the names of the arguments.
        """
        return {"x": self.pixels.prepare(x), "y": y}

    def validate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Check shape, dtype and values of images and conditions.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their conditions, `(n,)` or `(n, condition_size)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.pixels.validate(x)
        check_condition("y", y, self.condition_size, len(x), "x")

    def prior(self) -> dist.TorchDistribution:
        """Return the distribution of the latents of one image, whatever its condition."""
        normal: dist.TorchDistribution = dist.Normal(self.prior_loc, self.prior_scale).to_event(1)
        return normal

    def encode(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guide's distribution of the latents of images.

        Args:
            x: Images, `(*batch, *image_shape)`.
            y: Their conditions, `(*batch,)` integers or `(*batch, condition_size)` real numbers;
                the leading axes of both broadcast.

        Returns:
            Location and scale (a standard deviation), both `(*batch, latent_size)`.
        """
        x = self.pixels.as_input(x, self.prior_loc)
        loc, log_scale = self.encoder(x, self._vectors(y)).chunk(2, dim=-1)
        return loc, log_scale.exp()

    def decode(self, z: torch.Tensor, y: torch.Tensor) -> dist.TorchDistribution:
        """Return the distribution of images given their latents and conditions.

        Args:
            z: Latents, `(*batch, latent_size)`.
            y: Conditions, `(*batch,)` integers or `(*batch, condition_size)` real numbers; the
                leading axes of both broadcast.

        Returns:
            A distribution with batch shape `batch` and event shape `image_shape`. See
            `mean_image` for its mean.
        """
        return self.pixels.distribution(self.decoder(z, self._vectors(y)))

    def mean_image(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the expected image given its latents and condition, without gradients.

        Args:
            z: Latents, `(*batch, latent_size)`.
            y: Conditions, `(*batch,)` or `(*batch, condition_size)`; the leading axes broadcast.

        Returns:
            Images on the scale of the data, `(*batch, *image_shape)`.

        Raises:
            SiteError: If a class is out of range.
        """
        if not (y.is_floating_point() or y.dtype == torch.bool):
            check_classes("y", y, self.condition_size)
        with torch.no_grad():
            return self.pixels.mean(self.decode(z.to(self.prior_loc), y))

    def sample(self, y: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        """Draw latents from their prior and return the expected image of each, without gradients.

        Args:
            y: Conditions, `(n,)` or `(n, condition_size)`.
            seed: Seed of the draws.

        Returns:
            Images on the scale of the data, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with the conditions.
        """
        check_condition("y", y, self.condition_size)
        like = self.prior_loc
        generator = torch.Generator(like.device).manual_seed(seed)
        noise = torch.randn(
            len(y), self.latent_size, generator=generator, dtype=like.dtype, device=like.device
        )
        return self.mean_image(noise, y)

    def reconstruct(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the expected images at the guide's location for given ones.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their conditions, `(n,)` or `(n, condition_size)`.

        Returns:
            Images on the scale of the data, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with images or conditions.
        """
        self.validate(x, y)
        with torch.no_grad():
            return self.mean_image(self.encode(x, y)[0], y)

    def elbo_terms(self, x: torch.Tensor, y: torch.Tensor, *, seed: int = 0) -> ElboTerms:
        """Return reconstruction cost and Kullback-Leibler divergence of each image.

        Args:
            x: Images, `(n, *image_shape)`; binary ones where the likelihood is "binarized".
            y: Their conditions, `(n,)` or `(n, condition_size)`.
            seed: Seed of the draws of `z`, one for each image.

        Returns:
            Both parts of the negative evidence lower bound of `log p(x | y)`, without gradients,
            in float64.

        Raises:
            SiteError: If something is wrong with images or conditions.
        """
        self._check_scored(x, y)
        rows = rows_at_once(self.decoder.width)
        return elbo_terms(self._encoded(x, y, rows), self.prior_loc.device, seed)

    def importance_log_likelihood(
        self, x: torch.Tensor, y: torch.Tensor, num_samples: int = 500, *, seed: int = 0
    ) -> torch.Tensor:
        """Estimate `log p(x | y)` of each image by importance sampling from the guide.

        Args:
            x: Images, `(n, *image_shape)`; binary ones where the likelihood is "binarized".
            y: Their conditions, `(n,)` or `(n, condition_size)`.
            num_samples: Number of draws of `z` for each image.
            seed: Seed of the draws.

        Returns:
            Log-likelihoods in nats, `(n,)`, in float64; see `VAE.importance_log_likelihood`.

        Raises:
            SiteError: If something is wrong with images or conditions.
            ValueError: If the number of samples is not positive.
        """
        check_count("num_samples", num_samples)
        self._check_scored(x, y)
        rows = rows_at_once(self.decoder.width)
        batches = self._encoded(x, y, rows // num_samples)
        return importance_log_likelihood(batches, self.prior_loc.device, num_samples, rows, seed)

    def _check_scored(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.pixels.check_scored(x)
        check_condition("y", y, self.condition_size, len(x), "x")

    def _vectors(self, y: torch.Tensor) -> torch.Tensor:
        """Return conditions as vectors, classes as a one among zeros."""
        if y.is_floating_point():
            return y.to(self.prior_loc)
        classes = torch.arange(self.condition_size, device=self.prior_loc.device)
        return (y.to(classes.device).unsqueeze(-1) == classes).to(self.prior_loc.dtype)

    def _encoded(self, x: torch.Tensor, y: torch.Tensor, rows: int) -> Iterator[Encoded]:
        """Yield images with the guide's location and scale, a number of rows at a time."""
        rows = max(1, rows)
        for images, given in zip(x.split(rows), y.split(rows), strict=True):
            images = images.to(self.prior_loc.device)
            if images.is_floating_point():
                images = images.to(self.prior_loc.dtype)

            def decode(z: torch.Tensor, given: torch.Tensor = given) -> dist.TorchDistribution:
                return self.decode(z, given)

            yield Encoded(images, *self.encode(images, given), decode)
