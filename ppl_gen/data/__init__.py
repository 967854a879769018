"""Data sets and their loaders."""

from __future__ import annotations

from ppl_gen.data.dataset import DatasetUnavailableError, ImageDataset
from ppl_gen.data.digits import load_digits8x8
from ppl_gen.data.images import load_images
from ppl_gen.data.mnist import load_mnist

__all__ = [
    "DatasetUnavailableError",
    "ImageDataset",
    "load_digits8x8",
    "load_images",
    "load_mnist",
]
