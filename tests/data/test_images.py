"""Loaders of images: what they return, and what they say where there is nothing to return."""

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_gen.data import DatasetUnavailableError, load_digits8x8, load_images, load_mnist

PIXELS = torch.randint(256, (7, 28, 28), generator=torch.Generator().manual_seed(0))


def write_mnist(folder: Path, train: int = 5, test: int = 2) -> Path:
    """Write a small MNIST in torchvision's layout; the folder's parent is the data_dir."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, rows in (("train", slice(0, train)), ("t10k", slice(train, train + test))):
        pixels = PIXELS[rows].to(torch.uint8)
        header = struct.pack(">iiii", 2051, len(pixels), 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.numpy().tobytes())
        labels = bytes(i % 10 for i in range(len(pixels)))
        header = struct.pack(">ii", 2049, len(pixels))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels)
    return raw


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, which no test may share with the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppl_gen"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send every request to a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hanging_network(no_network: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send every request to a port that takes the connection and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


def test_mnist_itself(shared_data: Path) -> None:
    mnist = load_mnist(shared_data)
    assert mnist.name == "MNIST"
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    assert mnist.train_images.dtype == torch.float32
    # Published: mean 0.1307 and standard deviation 0.3081 of the training pixels.
    assert abs(float(mnist.train_images.mean()) - 0.1307) < 5e-5
    assert abs(float(mnist.train_images.std()) - 0.3081) < 5e-5
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_local_copy(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    mnist = load_mnist(str(tmp_path))
    torch.testing.assert_close(mnist.train_images, PIXELS[:5] / 255)
    torch.testing.assert_close(mnist.test_images, PIXELS[5:] / 255)
    assert mnist.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert mnist.train_labels.dtype == torch.int64
    for dataset in ("mnist", "auto"):
        found = load_images(dataset, tmp_path)
        assert torch.equal(found.train_images, mnist.train_images)
        assert found.note == ""


def test_what_was_downloaded_before_is_used(cache: Path, no_network: None) -> None:
    write_mnist(cache)
    assert load_images("auto").name == "MNIST"


def test_digits() -> None:
    digits = load_digits8x8()
    assert digits.image_shape == (8, 8)
    assert len(digits.train_images) == len(digits.train_labels) == 1437
    assert len(digits.test_images) == len(digits.test_labels) == 360
    assert digits.train_images.dtype == torch.float32
    assert float(digits.train_images.min()) == 0.0
    assert float(digits.train_images.max()) == 1.0
    assert torch.equal(load_digits8x8().test_images, digits.test_images), "the split must be fixed"
    together = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    # No two of the 1,797 images are alike, so that none of them can be in both parts.
    assert len(together.unique(dim=0)) == 1797
    # Ten classes of about 180 each: none is missing from either part.
    assert len(digits.test_labels.unique()) == len(digits.train_labels.unique()) == 10


def test_a_refused_download_is_an_error_or_the_digits(no_network: None, cache: Path) -> None:
    with pytest.raises(DatasetUnavailableError, match=r"could not be downloaded.*data_dir"):
        load_images("mnist")
    digits = load_images("auto")
    assert digits.name == "8x8 digits"
    assert "MNIST could not be downloaded" in digits.note
    assert "Going on with the 8x8 digits of scikit-learn" in digits.note
    assert list(cache.iterdir()) == [], "a failed download must leave nothing behind"


def test_a_hanging_download_is_given_up(hanging_network: None, cache: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DatasetUnavailableError, match=r"given up after 1.5 seconds"):
        load_mnist(download_timeout=1.5)
    # The import of torchvision in this process comes on top, where no test did that before.
    assert time.monotonic() - started < 30
    assert list(cache.iterdir()) == []


def test_folder_without_mnist(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(DatasetUnavailableError, match=r"no MNIST in .*train-images-idx3-ubyte"):
        load_images("mnist", tmp_path)
    raw = write_mnist(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetUnavailableError, match=r"with t10k-labels-idx1-ubyte. Give"):
        load_mnist(tmp_path)
    digits = load_images("auto", tmp_path)
    assert digits.name == "8x8 digits"
    assert "no MNIST in" in digits.note
    assert "could not be downloaded" in digits.note


def test_truncated_file(tmp_path: Path) -> None:
    images = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(DatasetUnavailableError, match="cannot be read"):
        load_mnist(tmp_path)


def test_labels_of_other_images(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    labels = (raw / "t10k-labels-idx1-ubyte").read_bytes()
    (raw / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(DatasetUnavailableError, match="2 labels for images of shape"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("name", ["mnst", "fashion"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown dataset '{name}'.*auto, mnist, digits") as error:
        load_images(name)
    assert ("Did you mean 'mnist'" in str(error.value)) == (name == "mnst")


class _Broken:
    """An import hook under which torchvision fails in a given way."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, *_: Any) -> None:
        if name.split(".")[0] == "torchvision":
            raise self.error


@pytest.fixture
def forget_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "torchvision":
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("operator torchvision::nms does not exist"), "does not fit torch .*nms"),
        (ImportError("undefined symbol: _ZN3c10"), "does not fit torch"),
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "not installed"),
    ],
)
def test_torchvision_that_does_not_fit(
    error: Exception,
    message: str,
    tmp_path: Path,
    forget_torchvision: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [_Broken(error), *sys.meta_path])
    with pytest.raises(DatasetUnavailableError, match=message) as caught:
        load_images("mnist", tmp_path)
    assert "pip install torch torchvision" in str(caught.value)
    assert load_images("digits").name == "8x8 digits"
    note = load_images("auto", tmp_path).note
    assert note.count("pip install") == 1


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DatasetUnavailableError, match="cannot be kept in"):
        load_mnist()


def test_download_puts_all_files_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torchvision whose download writes its files at once stands in for the network."""
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    source = write_mnist(tmp_path / "server").parent.parent
    (package / "datasets.py").write_text(
        "import shutil\n"
        "def MNIST(root, download):\n"
        f"    shutil.copytree({str(source)!r}, root, dirs_exist_ok=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    mnist = load_images("auto")
    assert mnist.name == "MNIST"
    assert mnist.note == ""
    assert [entry.name for entry in cache.iterdir()] == ["MNIST"]
    monkeypatch.delenv("PYTHONPATH")
    assert torch.equal(load_images("mnist").train_images, mnist.train_images)


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, ppl_gen.data; "
        "print([n for n in ('torchvision', 'sklearn') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
