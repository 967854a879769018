"""MNIST, from a local copy or by torchvision's download."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ppl_gen.data.dataset import DatasetUnavailableError, ImageDataset

__all__ = ["load_mnist"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DOWNLOAD = "import sys; from torchvision.datasets import MNIST; MNIST(sys.argv[1], download=True)"


def load_mnist(
    data_dir: str | Path | None = None, *, download_timeout: float = 30.0
) -> ImageDataset:
    """Return MNIST: 60,000 training and 10,000 test images of 28x28 pixels.

    Args:
        data_dir: Folder with a local copy in torchvision's layout: `data_dir/MNIST/raw` holds the
            four uncompressed files. None downloads it once, by torchvision, into
            `$XDG_CACHE_HOME/ppl_gen` (`~/.cache/ppl_gen`).
        download_timeout: Seconds after which a download is given up.

    Returns:
        The images.

    Raises:
        DatasetUnavailableError: If there is no complete copy in the folder, the download fails
            or takes too long, or torchvision cannot be imported.

    References:
        Gradient-Based Learning Applied to Document Recognition. Y. LeCun, L. Bottou, Y. Bengio,
        P. Haffner, Proceedings of the IEEE, 1998.
    """
    torchvision_mnist = _torchvision_mnist()
    if data_dir is None:
        data_dir = _cache()
        if _missing(data_dir):
            _download(data_dir, download_timeout)
    data_dir = Path(data_dir)
    missing = _missing(data_dir)
    if missing:
        msg = (
            f"no MNIST in {data_dir}: expected {data_dir / 'MNIST' / 'raw'} with "
            f"{', '.join(missing)}. Give the folder that holds the folder MNIST, or no data_dir "
            "to download it."
        )
        raise DatasetUnavailableError(msg)
    try:
        train_images, train_labels = _read(torchvision_mnist, data_dir, train=True)
        test_images, test_labels = _read(torchvision_mnist, data_dir, train=False)
    except Exception as error:  # a damaged file shows as any of many
        msg = (
            f"MNIST in {data_dir / 'MNIST' / 'raw'} cannot be read: {_reason(error)}. "
            "Remove that folder and get a new copy."
        )
        raise DatasetUnavailableError(msg) from error
    return ImageDataset(train_images, train_labels, test_images, test_labels, name="MNIST")


def _torchvision_mnist() -> Any:
    """Return torchvision's class, imported here only: it is slow, and may not fit torch."""
    remedy = "Run: pip install torch torchvision"
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            msg = f"MNIST needs torchvision, which is not installed. {remedy}"
        else:
            msg = (
                f"torchvision does not fit torch {torch.__version__} and cannot be imported "
                f"({_reason(error)}). Install the two together. {remedy}"
            )
        raise DatasetUnavailableError(msg) from error
    return MNIST


def _read(
    torchvision_mnist: Any, data_dir: Path, *, train: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    split = torchvision_mnist(str(data_dir), train=train, download=False)
    images, labels = split.data, split.targets
    if images.ndim != 3 or len(images) != len(labels) or len(images) == 0:
        msg = f"{len(labels)} labels for images of shape {tuple(images.shape)}"
        raise ValueError(msg)
    return images.float().div_(255), labels.long()


def _missing(data_dir: Path) -> list[str]:
    return [name for name in _FILES if not (data_dir / "MNIST" / "raw" / name).is_file()]


def _cache() -> Path:
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        msg = "no home folder to keep MNIST in. Set XDG_CACHE_HOME, or give data_dir."
        raise DatasetUnavailableError(msg) from error
    return Path(root) / "ppl_gen"


def _download(folder: Path, timeout: float) -> None:
    """Download into a folder that gets all files or none.

    A process of its own can be killed where a connection hangs, which a thread cannot.
    """
    remedy = "Download it elsewhere and give its folder as data_dir."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            subprocess.run(
                [sys.executable, "-c", _DOWNLOAD, scratch],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=True,
            )
            target = folder / "MNIST" / "raw"
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.replace(Path(scratch) / "MNIST" / "raw", target)
    except subprocess.TimeoutExpired as error:
        msg = f"MNIST could not be downloaded: given up after {timeout:g} seconds. {remedy}"
        raise DatasetUnavailableError(msg) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or ["no reason given"]
        msg = f"MNIST could not be downloaded ({last[0].rstrip('.')}). {remedy}"
        raise DatasetUnavailableError(msg) from error
    except OSError as error:
        msg = f"MNIST cannot be kept in {folder} ({_reason(error)}). {remedy}"
        raise DatasetUnavailableError(msg) from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
