"""Data sets and their loaders."""

from __future__ import annotations

from ppl_gen.data.audio import Chunks, cut, load_wav, save_wav
from ppl_gen.data.dataset import DatasetUnavailableError, ImageDataset
from ppl_gen.data.digits import load_digits8x8
from ppl_gen.data.images import load_images
from ppl_gen.data.mnist import load_mnist
from ppl_gen.data.spoken_digits import AudioDataset, load_spoken_digits, synthesize_vowels

__all__ = [
    "AudioDataset",
    "Chunks",
    "DatasetUnavailableError",
    "ImageDataset",
    "cut",
    "load_digits8x8",
    "load_images",
    "load_mnist",
    "load_spoken_digits",
    "load_wav",
    "save_wav",
    "synthesize_vowels",
]
