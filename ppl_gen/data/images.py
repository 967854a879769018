"""Handwritten digits by the name of the data set, or whichever can be had."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ppl_gen.core.errors import unknown
from ppl_gen.data.dataset import DatasetUnavailableError, ImageDataset
from ppl_gen.data.digits import load_digits8x8
from ppl_gen.data.mnist import load_mnist

__all__ = ["load_images"]

_DATASETS = ("auto", "mnist", "digits")


def load_images(
    dataset: str = "auto",
    data_dir: str | Path | None = None,
    *,
    download_timeout: float = 30.0,
) -> ImageDataset:
    """Return handwritten digits.

    Args:
        dataset: "mnist"; "digits", the 8x8 ones of scikit-learn; or "auto": MNIST from `data_dir`
            or by download, and the 8x8 digits where neither can be had. The `note` of the result
            then says why.
        data_dir: Folder with a local copy of MNIST, see `load_mnist`.
        download_timeout: Seconds after which a download is given up.

    Returns:
        The images.

    Raises:
        DatasetUnavailableError: If MNIST was asked for and cannot be had.
        ValueError: If the name is unknown.

    Example:
        >>> load_images("digits").image_shape
        (8, 8)
    """
    if dataset not in _DATASETS:
        raise unknown("dataset", dataset, _DATASETS)
    if dataset == "digits":
        return load_digits8x8()
    if dataset == "mnist":
        return load_mnist(data_dir, download_timeout=download_timeout)
    reasons: dict[str, None] = {}
    for source in dict.fromkeys([data_dir, None]):
        try:
            found = load_mnist(source, download_timeout=download_timeout)
        except DatasetUnavailableError as error:
            reasons[str(error)] = None
            continue
        return dataclasses.replace(found, note=" ".join(reasons))
    note = f"{' '.join(reasons)} Going on with the 8x8 digits of scikit-learn instead of MNIST."
    return dataclasses.replace(load_digits8x8(), note=note)
