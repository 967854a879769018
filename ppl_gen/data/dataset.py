"""What every loader of images returns, and the error of one that cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["DatasetUnavailableError", "ImageDataset"]


class DatasetUnavailableError(RuntimeError):
    """A data set can be neither read nor downloaded; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images with labels, split for training and testing.

    Args:
        train_images: Pixels in [0, 1], `(n, height, width)`, in float32.
        train_labels: Classes, `(n,)`, in int64.
        test_images: Pixels of other images, `(m, height, width)`, in float32.
        test_labels: Their classes, `(m,)`, in int64.
        name: Name of the data set.
        note: What the user should know, such as why another data set was taken; else empty.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    name: str
    note: str = ""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height and width of an image."""
        return tuple(self.train_images.shape[1:])
