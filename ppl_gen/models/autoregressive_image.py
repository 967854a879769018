"""Images by an autoregressive network."""

from __future__ import annotations

from typing import Any

import torch

from ppl_gen.distributions import AutoregressiveNetwork
from ppl_gen.models.autoregressive_likelihood import AutoregressiveLikelihood
from ppl_gen.models.pixel_values import check_pixels, draw_binary

__all__ = ["AutoregressiveImage"]


class AutoregressiveImage(AutoregressiveLikelihood):
    r"""Images whose pixels come one after the other, each given those before it.

    .. math::
        \log p(x \mid y) = \sum_i \log p(x_i \mid x_1, \ldots, x_{i - 1}, y)

    There are no latents: `SVI(guide="pair")` maximizes the likelihood of the network's parameters,
    which to MCMC are constants. With `prior_scale` it maximizes their posterior density.

    Pixels are integers as the network's elements are. Of binary ones also probabilities may be
    given, numbers in [0, 1]: binary pixels are then drawn anew for every batch (`prepare`), which
    is called dynamic binarization; 0 and 1 stay what they are.

    Site: "x" `network.event_shape`, observed, in the plate "data".

    Args:
        network: A network of images, such as `GatedPixelCNN`; it is trained in a copy.
        num_classes: Number of classes that images are given by, of which the network is told as a
            vector of a one among zeros: make it with `context_size=num_classes`. None: there are
            none.
        prior_scale: Scale (a standard deviation) of a normal prior of every parameter, centred at
            zero; None: all values are as likely.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the network is of no images, its context is no such vector, or a number is
            not positive.

    References:
        Pixel Recurrent Neural Networks. A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, 2016.
        arXiv:1601.06759.

    Example:
        >>> from ppl_gen.models.networks import GatedPixelCNN
        >>> network = GatedPixelCNN((4, 4), features=8, layers=2, context_size=3)
        >>> pair = AutoregressiveImage(network, num_classes=3)
        >>> images, labels = torch.zeros(5, 4, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> pair.log_prob(images, labels).shape, pair.sample(labels).shape
        (torch.Size([5]), torch.Size([5, 4, 4]))
    """

    unit = "pixels"

    def __init__(
        self,
        network: AutoregressiveNetwork,
        num_classes: int | None = None,
        prior_scale: float | None = None,
    ) -> None:
        super().__init__(network, num_classes, prior_scale)
        if len(network.event_shape) not in (2, 3):
            msg = (
                "network: expected one of images, (height, width) or (channels, height, width), "
                f"got event_shape={tuple(network.event_shape)}."
            )
            raise ValueError(msg)

    def prepare(self, x: torch.Tensor, y: torch.Tensor | None = None) -> dict[str, Any]:
        """Draw binary pixels where their probabilities are given.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their classes, `(n,)`.

        Returns:
            Both by the names of the arguments.
        """
        drawn = draw_binary(x, self.network.elements)
        return {"x": drawn} if y is None else {"x": drawn, "y": y}

    def validate(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Check images and classes.

        Args:
            x: Images, `(n, *image_shape)`.
            y: Their classes, `(n,)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self._check(x, drawn=False)
        self.check_labels(y, len(x))

    def check_values(self, x: torch.Tensor) -> None:
        """Refuse images of another shape, or values that are no pixels.

        Args:
            x: Images, `(n, *image_shape)`.

        Raises:
            SiteError: If something is wrong with them.
        """
        self._check(x, drawn=True)

    def _check(self, x: torch.Tensor, *, drawn: bool) -> None:
        shape, elements = self.network.event_shape, self.network.elements
        check_pixels(x, shape, elements, "Make the network for ", drawn=drawn)
