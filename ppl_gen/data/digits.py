"""The 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from ppl_gen.data.dataset import ImageDataset

__all__ = ["load_digits8x8"]

_TEST_IMAGES = 360


def load_digits8x8() -> ImageDataset:
    """Return the 1,797 handwritten digits of 8x8 pixels that come with scikit-learn.

    The split into 1,437 training and 360 test images is random, and always the same.

    Returns:
        The images, their 17 gray levels brought to [0, 1].

    References:
        Optical Recognition of Handwritten Digits. E. Alpaydin, C. Kaynak, UCI Machine Learning
        Repository, 1998.

    Example:
        >>> load_digits8x8().train_images.shape
        torch.Size([1437, 8, 8])
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float() / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
    return ImageDataset(images[train], labels[train], images[test], labels[test], name="8x8 digits")
