"""A variational autoencoder of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import SiteError, unknown
from ppl_gen.core.pair import Pair
from ppl_gen.models.checks import check_positive, check_size
from ppl_gen.models.networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    MLPDecoder,
    MLPEncoder,
)

__all__ = ["VAE", "ElboTerms"]

_LIKELIHOODS = ("bernoulli", "binarized", "gaussian", "categorical")
_NETWORKS = ("mlp", "convolutional")

# Pixels that are the same in every image would let a Gaussian's density grow without bound; half
# a grey level of 8 bits is as sharp as such pixels can be known.
_LEAST_SCALE = 0.5 / 255
_FIRST_SCALE = 0.2

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


class VAE(Pair):
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
    ) -> None:
        super().__init__()
        self.image_shape = _sizes("image_shape", image_shape)
        check_size("latent_size", latent_size)
        self.latent_size = latent_size
        self.hidden_sizes = _sizes("hidden_sizes", hidden_sizes, least=0)
        if likelihood not in _LIKELIHOODS:
            raise unknown("likelihood", likelihood, _LIKELIHOODS)
        self.likelihood = likelihood
        if network not in _NETWORKS:
            raise unknown("network", network, _NETWORKS)
        self.network = network
        check_positive("beta", beta)
        self.beta = beta
        check_size("num_categories", num_categories)
        if num_categories < 2:
            msg = f"num_categories: expected at least 2, got {num_categories}."
            raise ValueError(msg)
        self.num_categories = num_categories
        self.channels = _sizes("channels", channels)

        outputs = num_categories if likelihood == "categorical" else 1
        # Location and scale come from one layer: one product instead of two.
        self.encoder: nn.Module
        self.decoder: MLPDecoder | ConvolutionalDecoder
        if network == "mlp":
            self.encoder = MLPEncoder(self.image_shape, self.hidden_sizes, 2 * latent_size)
            self.decoder = MLPDecoder(
                latent_size, self.hidden_sizes[::-1], self.image_shape, outputs
            )
        else:
            self.encoder = ConvolutionalEncoder(
                self.image_shape, self.channels, self.hidden_sizes, 2 * latent_size
            )
            self.decoder = ConvolutionalDecoder(
                latent_size,
                self.hidden_sizes[::-1],
                self.channels[::-1],
                self.image_shape,
                outputs,
            )
        if likelihood == "gaussian":
            raw = math.log(math.expm1(_FIRST_SCALE - _LEAST_SCALE))
            self.raw_pixel_scale = nn.Parameter(torch.tensor(raw))
        self.prior_loc: torch.Tensor
        self.prior_scale: torch.Tensor
        self.register_buffer("prior_loc", torch.zeros(latent_size), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_size), persistent=False)

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
        return {"x": torch.bernoulli(x) if self.likelihood == "binarized" else x}

    def validate(self, x: torch.Tensor) -> None:
        """Check shape, dtype and values of images.

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self._check_shape(x)
        highest = self.num_categories - 1 if self.likelihood == "categorical" else 1
        if self.likelihood == "categorical":
            integer = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
            if not integer:
                raise SiteError(
                    "x",
                    expected=f"integers from 0 to {highest}",
                    got=str(x.dtype),
                    remedy=f"Write (x * {highest}).round().long() for pixels in [0, 1].",
                )
        else:
            if not x.is_floating_point():
                raise SiteError(
                    "x",
                    expected="floating-point pixels",
                    got=str(x.dtype),
                    remedy="Write x.float() / 255 for images of 8 bits, x.float() for binary ones.",
                )
        if self.likelihood == "gaussian":
            return
        low, high = (float(value) for value in torch.aminmax(x))
        if not (low >= 0 and high <= highest):
            what = (
                "integers from 0 to" if self.likelihood == "categorical" else "pixels between 0 and"
            )
            raise SiteError(
                "x",
                expected=f"{what} {highest}",
                got=f"values from {low:g} to {high:g}",
                remedy=self._value_remedy(low, high),
            )

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guide's distribution of the latents of images.

        Args:
            x: Images, `(*batch, *image_shape)`.

        Returns:
            Location and scale (a standard deviation), both `(*batch, latent_size)`.
        """
        x = x.to(self.prior_loc)
        if self.likelihood == "categorical":
            x = x / (self.num_categories - 1)
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
        pixels = self.decoder(z)
        if self.likelihood == "gaussian":
            scale = F.softplus(self.raw_pixel_scale) + _LEAST_SCALE
            pixel: dist.TorchDistribution = dist.Normal(pixels, scale)
        elif self.likelihood == "categorical":
            pixel = dist.Categorical(logits=pixels)
        else:
            # Gray pixels are outside the support, and are scored all the same.
            pixel = dist.Bernoulli(logits=pixels, validate_args=False)
        images: dist.TorchDistribution = pixel.to_event(len(self.image_shape))
        return images

    def mean_image(self, z: torch.Tensor) -> torch.Tensor:
        """Return the expected image given its latents, without gradients.

        Args:
            z: Latents, `(*batch, latent_size)`.

        Returns:
            Images on the scale of the data, `(*batch, *image_shape)`.
        """
        with torch.no_grad():
            pixel = self.decode(z.to(self.prior_loc)).base_dist
            if self.likelihood == "categorical":
                values = torch.arange(self.num_categories).to(self.prior_loc)
                mean: torch.Tensor = pixel.probs @ values
            else:
                mean = pixel.mean
            return mean

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

    def elbo_terms(self, x: torch.Tensor, *, seed: int = 0) -> ElboTerms:
        """Return reconstruction cost and Kullback-Leibler divergence of each image.

        Args:
            x: Images, `(n, *image_shape)`; binary ones where the likelihood is "binarized".
            seed: Seed of the draws of `z`, one for each image.

        Returns:
            Both parts of the negative evidence lower bound, without gradients, in float64.

        Raises:
            SiteError: If something is wrong with the images.

        Example:
            >>> terms = VAE((8, 8), latent_size=2).elbo_terms(torch.rand(5, 8, 8))
            >>> terms.negative_elbo.shape
            torch.Size([5])
        """
        self._check_scored(x)
        reconstruction, divergence = [], []
        generator = torch.Generator(self.prior_loc.device).manual_seed(seed)
        with torch.no_grad():
            for images, loc, scale in self._encoded(x, self._rows_at_once):
                noise = self._noise(loc.shape, generator)
                log_prob = self.decode(loc + scale * noise).log_prob(images)
                reconstruction.append(-log_prob.double())
                squares = loc.square() + scale.square() - 1.0
                divergence.append((0.5 * squares - scale.log()).double().sum(-1))
        return ElboTerms(torch.cat(reconstruction), torch.cat(divergence))

    def importance_log_likelihood(
        self, x: torch.Tensor, num_samples: int = 500, *, seed: int = 0
    ) -> torch.Tensor:
        r"""Estimate the log-likelihood of each image by importance sampling from the guide.

        With :math:`z_k \sim q(z \mid x)`

        .. math::
            \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K \frac{p(x \mid z_k) \, p(z_k)}
            {q(z_k \mid x)},

        which is a lower bound in expectation for every K, tighter for a larger one. It does not
        depend on `beta`. Memory is bounded, whatever the number of images and samples.

        Args:
            x: Images, `(n, *image_shape)`; binary ones where the likelihood is "binarized".
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
            >>> VAE((8, 8), latent_size=2).importance_log_likelihood(torch.rand(5, 8, 8)).shape
            torch.Size([5])
        """
        check_size("num_samples", num_samples)
        self._check_scored(x)
        generator = torch.Generator(self.prior_loc.device).manual_seed(seed)
        results = []
        with torch.no_grad():
            for images, loc, scale in self._encoded(x, self._rows_at_once // num_samples):
                rows = max(1, self._rows_at_once // len(images))
                log_weights = []
                for start in range(0, num_samples, rows):
                    draws = min(rows, num_samples - start)
                    noise = self._noise((draws, *loc.shape), generator)
                    z = loc + scale * noise
                    # log p(z) - log q(z | x): the constants of the two densities cancel.
                    prior_ratio = 0.5 * (noise.double().square() - z.double().square())
                    prior_ratio = (prior_ratio + scale.double().log()).sum(-1)
                    log_weights.append(self.decode(z).log_prob(images).double() + prior_ratio)
                results.append(torch.cat(log_weights).logsumexp(0) - math.log(num_samples))
        return torch.cat(results)

    @property
    def _rows_at_once(self) -> int:
        return max(1, _CHUNK // self.decoder.width)

    def _encoded(
        self, x: torch.Tensor, rows: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield images with the guide's location and scale, a number of rows at a time."""
        for images in x.split(max(1, rows)):
            images = images.to(self.prior_loc.device)
            if images.is_floating_point():
                images = images.to(self.prior_loc.dtype)
            yield images, *self.encode(images)

    def _noise(self, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        like = self.prior_loc
        return torch.randn(*shape, generator=generator, dtype=like.dtype, device=like.device)

    def _check_scored(self, x: torch.Tensor) -> None:
        self.validate(x)
        if self.likelihood == "binarized" and bool(((x != 0) & (x != 1)).any()):
            raise SiteError(
                "x",
                expected="binary pixels, since the likelihood 'binarized' is one of binary images",
                got="gray ones",
                remedy="Draw them first: torch.bernoulli(x), or x.round() for a fixed threshold.",
            )

    def _check_shape(self, x: Any) -> None:
        shape = ", ".join(str(size) for size in self.image_shape)
        expected = f"a tensor of shape (n, {shape})"
        if not isinstance(x, torch.Tensor):
            remedy = "Write torch.as_tensor(x)."
            raise SiteError("x", expected=expected, got=type(x).__name__, remedy=remedy)
        got = f"shape {tuple(x.shape)}"
        if x.ndim == 0 or len(x) == 0:
            raise SiteError("x", expected=expected, got=got, remedy="Give at least one image.")
        if x.shape[1:] == self.image_shape:
            return
        if x.shape == self.image_shape:
            remedy = "Write x[None] for a single image."
        elif x[0].numel() == math.prod(self.image_shape):
            remedy = f"Write x.reshape(-1, {shape})."
        else:
            remedy = f"Create the pair with image_shape={tuple(x.shape[1:])}."
        raise SiteError("x", expected=expected, got=got, remedy=remedy)

    def _value_remedy(self, low: float, high: float) -> str:
        if self.likelihood == "categorical":
            return f"Create the pair with num_categories={int(high) + 1}, or use fewer levels."
        if 0 <= low and 1 < high <= 255:
            return "Write x / 255 for images of 8 bits."
        return "Rescale them, or take likelihood='gaussian', which has no bounds."


def _sizes(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """Return positive integers as a tuple, of at least so many."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        msg = f"{name}: expected a tuple of positive integers, got {values!r}. Write ({values},)."
        raise TypeError(msg)
    for i, value in enumerate(values):
        check_size(f"{name}[{i}]", value)
    if len(values) < least:
        msg = f"{name}: expected at least {least} number, got {values!r}."
        raise ValueError(msg)
    return tuple(values)
