"""A variational autoencoder that learns classes of images from few labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_gen.core.errors import SiteError, check_count, check_counts
from ppl_gen.core.pair import Pair
from ppl_gen.models.checks import (
    check_classes,
    check_target,
    check_weight,
)
from ppl_gen.models.conditional_vae import ConditionalVAE
from ppl_gen.models.networks import image_encoder

__all__ = ["SemiSupervisedVAE"]


class SemiSupervisedVAE(Pair):
    r"""A variational autoencoder of images in classes, of which few are known ("M2").

    Generative story, for each image :math:`x_i`, with :math:`K` classes:

    .. math::
        y_i \sim \mathrm{Categorical}(1/K, \dots, 1/K), \qquad z_i \sim \mathrm{Normal}(0, I),
        \qquad x_i \sim p(x \mid f(z_i, y_i)),

    that is, a `ConditionalVAE` (`pair.conditional`) whose conditions are latent. The guide is
    :math:`q(y \mid x) \, q(z \mid x, y)`, the first of which is a classifier, see `classify`.
    For an image without label the bound is

    .. math::
        -U(x) = \sum_y q(y \mid x) \, (-L(x, y)) + H[q(y \mid x)], \qquad
        -L(x, y) = \mathbb{E}_{q(z \mid x, y)} [\log p(x \mid y, z)] + \log p(y)
        - \mathrm{KL}[q(z \mid x, y) \,\|\, p(z)],

    with the sum over classes exact. What a fit minimises is, for N images without label and M with,

    .. math::
        J = \sum_{i=1}^N U(x_i) + \sum_{j=1}^M L(x_j, y_j)
        - \alpha N \, \frac{1}{M} \sum_{j=1}^M \log q(y_j \mid x_j).

    The last term is no part of the bound: without it the classifier would never see a label, and
    the groups that it finds need not be the classes. A posterior's `elbo` is the bound alone.

    The unlabelled images may come in mini-batches, by `SVI(guide="pair", batch_size=100,
    plate="data")`; all of the labelled ones take part in each step, and both parts are weighed so
    that a step's loss is an unbiased estimate of J. Labelled images may be among the unlabelled
    ones, too; of these there must not be exactly as many.

    In place of images it may be given what a `VAE` has learned to say of them, the locations of
    their latents (`image_shape=(30,), likelihood="gaussian", pixel_scale=1.0`): the paper's
    "M1+M2", which costs a fraction and classifies better.

    Sites: "y", "z" `(latent_size,)` and "x" `image_shape`, observed, in the plate "data"; the same
    with "_labelled" in the plate "labelled", where the class is observed as well.

    Args:
        image_shape: Shape of an image: (height, width) or (channels, height, width); any other
            with `network="mlp"`.
        num_classes: Number of classes.
        latent_size: Number of latent variables for each image, besides the class.
        hidden_sizes: Sizes of the encoder's fully connected hidden layers, from the image on; the
            decoder has them in reverse order.
        likelihood: "bernoulli", "binarized", "gaussian" or "categorical", see `VAE`.
        network: "mlp" or "convolutional", of encoder and decoder; see `VAE`.
        classifier: "mlp" or "convolutional".
        classifier_sizes: Sizes of the classifier's fully connected hidden layers.
        alpha: Weight of the classification loss, at least 0. The paper has 0.1; the more nats a
            bound has (of images, rather than of features), the larger it has to be.
        num_categories: Number of values of a pixel, for "categorical".
        channels: Numbers of channels, for "convolutional".
        pixel_scale: Scale (a standard deviation) that "gaussian" pixels start from.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size is not positive, `alpha` is negative, a name is unknown, or the image
            is too small for the convolutions.

    References:
        Semi-Supervised Learning with Deep Generative Models. D. P. Kingma, D. J. Rezende,
        S. Mohamed, M. Welling, 2014. arXiv:1406.5298

    Example:
        >>> pair = SemiSupervisedVAE((8, 8), num_classes=3, latent_size=2, hidden_sizes=(16,))
        >>> pair.classify(torch.rand(5, 8, 8)).shape
        torch.Size([5, 3])
        >>> pair.sample(torch.tensor([0, 1, 2])).shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        num_classes: int = 10,
        latent_size: int = 20,
        hidden_sizes: Sequence[int] = (400,),
        likelihood: str = "bernoulli",
        network: str = "mlp",
        classifier: str = "mlp",
        classifier_sizes: Sequence[int] = (400,),
        alpha: float = 1.0,
        num_categories: int = 256,
        channels: Sequence[int] = (32, 64),
        pixel_scale: float = 0.2,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.conditional = ConditionalVAE(
            image_shape=image_shape,
            condition_size=num_classes,
            latent_size=latent_size,
            hidden_sizes=hidden_sizes,
            likelihood=likelihood,
            network=network,
            num_categories=num_categories,
            channels=channels,
            pixel_scale=pixel_scale,
        )
        self.image_shape = self.conditional.image_shape
        self.num_classes = num_classes
        self.latent_size = latent_size
        self.hidden_sizes = self.conditional.hidden_sizes
        self.likelihood = likelihood
        self.network = network
        self.classifier_sizes = check_counts("classifier_sizes", classifier_sizes, least=0)
        check_weight("alpha", alpha)
        self.alpha = alpha
        self.num_categories = num_categories
        self.channels = self.conditional.channels
        self.pixel_scale = pixel_scale
        self.classifier = classifier
        self.class_logits = image_encoder(
            classifier, self.image_shape, self.channels, self.classifier_sizes, num_classes
        )
        self.prior_probs: torch.Tensor
        uniform = torch.full((num_classes,), 1.0 / num_classes)
        self.register_buffer("prior_probs", uniform, persistent=False)

    def model(
        self, x: torch.Tensor, x_labelled: torch.Tensor, y_labelled: torch.Tensor
    ) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Images without labels, `(n, *image_shape)`.
            x_labelled: Other images, `(m, *image_shape)`.
            y_labelled: Their classes, integers `(m,)`.

        Returns:
            The images without labels.
        """
        prior, classes = self.conditional.prior(), dist.Categorical(self.prior_probs)
        with pyro.plate("labelled", len(x_labelled)):
            y = pyro.sample("y_labelled", classes, obs=y_labelled)
            z = pyro.sample("z_labelled", prior)
            pyro.sample("x_labelled", self.decode(z, y), obs=x_labelled)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", classes)
            z = pyro.sample("z", prior)
            images: torch.Tensor = pyro.sample("x", self.decode(z, y), obs=x)
        return images

    def guide(
        self, x: torch.Tensor, x_labelled: torch.Tensor, y_labelled: torch.Tensor
    ) -> torch.Tensor:
        """Draw the classes and latents of images from classifier and encoder.

        In training mode a factor adds the classification loss.

        Args:
            x: Images without labels, `(n, *image_shape)`.
            x_labelled: Other images, `(m, *image_shape)`.
            y_labelled: Their classes, integers `(m,)`.

        Returns:
            The classes of the images without labels, `(n,)`.
        """
        with pyro.plate("labelled", len(x_labelled)):
            loc, scale = self.encode(x_labelled, y_labelled)
            pyro.sample("z_labelled", dist.Normal(loc, scale).to_event(1))
        with pyro.plate("data", len(x)):
            y: torch.Tensor = pyro.sample("y", self._classes(x), infer={"enumerate": "parallel"})
            loc, scale = self.encode(x, y)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            if self.training and self.alpha > 0:
                # What a guide says is taken from the bound, hence the sign; and each image in the
                # plate adds the mean over labels, so that mini-batches add up to N times it.
                log_prob = self._classes(x_labelled).log_prob(y_labelled).mean()
                loss = -self.alpha * log_prob.expand(len(x))
                pyro.factor("classification", loss, has_rsample=True)
        return y

    def prepare(
        self, x: torch.Tensor, x_labelled: torch.Tensor, y_labelled: torch.Tensor
    ) -> dict[str, Any]:
        """Draw binary pixels where the likelihood is "binarized"; else leave the images.

        Args:
            x: Images without labels, `(n, *image_shape)`.
            x_labelled: Other images, `(m, *image_shape)`.
            y_labelled: Their classes.

        Returns:
            All by the names of the arguments.
        """
        pixels = self.conditional.pixels
        return {
            "x": pixels.prepare(x),
            "x_labelled": pixels.prepare(x_labelled),
            "y_labelled": y_labelled,
        }

    def validate(self, x: torch.Tensor, x_labelled: torch.Tensor, y_labelled: torch.Tensor) -> None:
        """Check shape, dtype and values of images and classes.

        Args:
            x: Images without labels, `(n, *image_shape)`.
            x_labelled: Other images, `(m, *image_shape)`.
            y_labelled: Their classes, integers `(m,)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self.conditional.pixels.validate(x)
        self.conditional.pixels.validate(x_labelled, "x_labelled")
        check_target("y_labelled", y_labelled, len(x_labelled), "x_labelled")
        if y_labelled.is_floating_point() or y_labelled.dtype == torch.bool:
            raise SiteError(
                "y_labelled",
                expected=f"classes, integers from 0 to {self.num_classes - 1}",
                got=str(y_labelled.dtype),
                remedy="Write y_labelled.long().",
            )
        check_classes("y_labelled", y_labelled, self.num_classes)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class under the guide, without gradients.

        Args:
            x: Images, `(n, *image_shape)`; where the likelihood is "binarized", gray ones will do.

        Returns:
            Probabilities, `(n, num_classes)`.

        Raises:
            SiteError: If something is wrong with the images.
        """
        self.conditional.pixels.validate(x)
        with torch.no_grad():
            return torch.cat([self._classes(images).probs for images in x.split(1000)])

    def encode(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guide's distribution of the latents of images of given classes.

        Args:
            x: Images, `(*batch, *image_shape)`.
            y: Classes, integers `(*batch,)`; the leading axes of both broadcast.

        Returns:
            Location and scale (a standard deviation), both `(*batch, latent_size)`.
        """
        return self.conditional.encode(x, y)

    def decode(self, z: torch.Tensor, y: torch.Tensor) -> dist.TorchDistribution:
        """Return the distribution of images given their latents and classes.

        Args:
            z: Latents, `(*batch, latent_size)`.
            y: Classes, integers `(*batch,)`; the leading axes of both broadcast.

        Returns:
            A distribution with batch shape `batch` and event shape `image_shape`.
        """
        return self.conditional.decode(z, y)

    def sample(self, y: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        """Draw latents from their prior and return the expected image of each, without gradients.

        Args:
            y: Classes, integers `(n,)`.
            seed: Seed of the draws.

        Returns:
            Images on the scale of the data, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with the classes.
        """
        return self.conditional.sample(y, seed=seed)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Return the expected images for given ones, each of its most probable class.

        Args:
            x: Images, `(n, *image_shape)`.

        Returns:
            Images on the scale of the data, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with the images.
        """
        return self.conditional.reconstruct(x, self.classify(x).argmax(-1))

    def _classes(self, x: torch.Tensor) -> dist.Categorical:
        pixels = self.conditional.pixels.as_input(x, self.prior_probs)
        return dist.Categorical(logits=self.class_logits(pixels))
