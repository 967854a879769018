"""What the pixels of an image are, given a network's numbers for each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from ppl_gen.core.errors import SiteError, check_count, unknown
from ppl_gen.models.checks import check_events, check_positive

__all__ = ["PixelLikelihood"]

_LIKELIHOODS = ("bernoulli", "binarized", "gaussian", "categorical")

# Pixels that are the same in every image would let a Gaussian's density grow without bound; half
# a grey level of 8 bits is as sharp as such pixels can be known.
_LEAST_SCALE = 0.5 / 255


class PixelLikelihood(nn.Module):
    """Independent pixels of an image, given the numbers that a decoder has for them.

    Args:
        likelihood: "bernoulli", "binarized", "gaussian" or "categorical", as `VAE` describes them.
        image_shape: Shape of an image.
        num_categories: Number of values of a pixel, for "categorical".
        pixel_scale: Scale (a standard deviation) to start from, for "gaussian".

    Raises:
        TypeError: If a number is of the wrong type.
        ValueError: If the likelihood is unknown, there are fewer than two categories, or the scale
            is too small.

    Example:
        >>> PixelLikelihood("bernoulli", (8, 8)).distribution(torch.zeros(5, 8, 8)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        likelihood: str,
        image_shape: Sequence[int],
        num_categories: int = 256,
        pixel_scale: float = 0.2,
    ) -> None:
        super().__init__()
        if likelihood not in _LIKELIHOODS:
            raise unknown("likelihood", likelihood, _LIKELIHOODS)
        check_count("num_categories", num_categories)
        if num_categories < 2:
            msg = f"num_categories: expected at least 2, got {num_categories}."
            raise ValueError(msg)
        check_positive("pixel_scale", pixel_scale)
        if pixel_scale <= _LEAST_SCALE:
            msg = f"pixel_scale: expected more than {_LEAST_SCALE:.2g}, got {pixel_scale}."
            raise ValueError(msg)
        self.likelihood = likelihood
        self.image_shape = tuple(image_shape)
        self.num_categories = num_categories
        if likelihood == "gaussian":
            raw = math.log(math.expm1(pixel_scale - _LEAST_SCALE))
            self.raw_scale = nn.Parameter(torch.tensor(raw))

    @property
    def num_outputs(self) -> int:
        """How many numbers a decoder has to give for each pixel."""
        return self.num_categories if self.likelihood == "categorical" else 1

    def distribution(self, numbers: torch.Tensor) -> dist.TorchDistribution:
        """Return the distribution of images.

        Args:
            numbers: Unbounded numbers, `(*batch, *image_shape)`, with a last axis of `num_outputs`
                where that is more than 1.

        Returns:
            A distribution with batch shape `batch` and event shape `image_shape`.
        """
        if self.likelihood == "gaussian":
            scale = F.softplus(self.raw_scale) + _LEAST_SCALE
            pixel: dist.TorchDistribution = dist.Normal(numbers, scale)
        elif self.likelihood == "categorical":
            pixel = dist.Categorical(logits=numbers)
        else:
            # Gray pixels are outside the support, and are scored all the same.
            pixel = dist.Bernoulli(logits=numbers, validate_args=False)
        images: dist.TorchDistribution = pixel.to_event(len(self.image_shape))
        return images

    def mean(self, images: dist.TorchDistribution) -> torch.Tensor:
        """Return the expected image of a distribution, on the scale of the data.

        Args:
            images: What `distribution` returned.

        Returns:
            Images, `(*batch, *image_shape)`.
        """
        pixel = images.base_dist
        if self.likelihood == "categorical":
            mean: torch.Tensor = pixel.probs @ torch.arange(self.num_categories).to(pixel.probs)
        else:
            mean = pixel.mean
        return mean

    def as_input(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return images as an encoder takes them, categories brought to [0, 1].

        Args:
            x: Images, `(*batch, *image_shape)`.
            like: A tensor of the encoder.
        """
        x = x.to(like)
        return x / (self.num_categories - 1) if self.likelihood == "categorical" else x

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Draw binary pixels where the likelihood is "binarized"; else leave the images.

        Args:
            x: Images, `(n, *image_shape)`.
        """
        return torch.bernoulli(x) if self.likelihood == "binarized" else x

    def validate(self, x: Any, name: str = "x") -> None:
        """Check shape, dtype and values of images.

        Args:
            x: What should be images, `(n, *image_shape)`.
            name: Name of the argument.

        Raises:
            SiteError: If something is wrong with them.
        """
        check_events(name, x, self.image_shape, "Create the pair with image_shape=")
        highest = self.num_categories - 1 if self.likelihood == "categorical" else 1
        if self.likelihood == "categorical":
            integer = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
            if not integer:
                raise SiteError(
                    name,
                    expected=f"integers from 0 to {highest}",
                    got=str(x.dtype),
                    remedy=f"Write ({name} * {highest}).round().long() for pixels in [0, 1].",
                )
        elif not x.is_floating_point():
            raise SiteError(
                name,
                expected="floating-point pixels",
                got=str(x.dtype),
                remedy=f"Write {name}.float() / 255 for images of 8 bits, {name}.float() for "
                "binary ones.",
            )
        if self.likelihood == "gaussian":
            return
        low, high = (float(value) for value in torch.aminmax(x))
        if not (low >= 0 and high <= highest):
            what = (
                "integers from 0 to" if self.likelihood == "categorical" else "pixels between 0 and"
            )
            raise SiteError(
                name,
                expected=f"{what} {highest}",
                got=f"values from {low:g} to {high:g}",
                remedy=self._value_remedy(name, low, high),
            )

    def check_scored(self, x: torch.Tensor) -> None:
        """Check images whose likelihood is wanted, which have to be in its support.

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them, or they are gray where binary ones were
                modelled.
        """
        self.validate(x)
        if self.likelihood == "binarized" and bool(((x != 0) & (x != 1)).any()):
            raise SiteError(
                "x",
                expected="binary pixels, since the likelihood 'binarized' is one of binary images",
                got="gray ones",
                remedy="Draw them first: torch.bernoulli(x), or x.round() for a fixed threshold.",
            )

    def _value_remedy(self, name: str, low: float, high: float) -> str:
        if self.likelihood == "categorical":
            return f"Create the pair with num_categories={int(high) + 1}, or use fewer levels."
        if 0 <= low and 1 < high <= 255:
            return f"Write {name} / 255 for images of 8 bits."
        return "Rescale them, or take likelihood='gaussian', which has no bounds."
