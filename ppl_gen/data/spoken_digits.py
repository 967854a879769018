"""Recordings of sounds with labels: spoken digits, and synthetic vowels in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_gen.data.audio import load_wav
from ppl_gen.data.dataset import DatasetUnavailableError

__all__ = ["AudioDataset", "load_spoken_digits", "synthesize_vowels"]

_RATE = 8000
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
# Recordings of a digit by a speaker that are for testing.
_TEST = 5


@dataclass(frozen=True, eq=False)
class AudioDataset:
    """Recordings of one channel with labels, split for training and testing.

    Args:
        train_waveforms: Amplitudes in [-1, 1], `(sample,)` each, of various lengths, in float32.
        train_labels: Their classes, `(n,)`, in int64.
        train_speakers: Places in `speakers`, `(n,)`, in int64.
        test_waveforms: Other recordings.
        test_labels: Their classes, `(m,)`.
        test_speakers: Their speakers, `(m,)`.
        labels: What the classes are called.
        speakers: What the speakers are called.
        rate: Samples a second.
        name: Name of the data set.
        note: What the user should know, such as why another data set was taken; else empty.
    """

    train_waveforms: tuple[torch.Tensor, ...]
    train_labels: torch.Tensor
    train_speakers: torch.Tensor
    test_waveforms: tuple[torch.Tensor, ...]
    test_labels: torch.Tensor
    test_speakers: torch.Tensor
    labels: tuple[str, ...]
    speakers: tuple[str, ...]
    rate: int
    name: str
    note: str = ""


def load_spoken_digits(folder: str | Path) -> AudioDataset:
    """Return the Free Spoken Digit Dataset: English digits at 8,000 samples a second.

    In its official split, recordings 0 to 4 of each digit by each speaker are for testing.

    Args:
        folder: Folder with files `{digit}_{speaker}_{index}.wav`, or with a folder `recordings` of
            them.

    Raises:
        DatasetUnavailableError: If the folder holds no such recordings for either part.
        ValueError: If one of them cannot be read.

    References:
        Free Spoken Digit Dataset, version 1.0.10. Z. Jackson et al., 2020.
        https://github.com/Jakobovski/free-spoken-digit-dataset
    """
    folder = Path(folder)
    source = folder / "recordings" if (folder / "recordings").is_dir() else folder
    files = sorted(source.glob("*.wav"))
    matches = [(path, match) for path in files if (match := _NAME.fullmatch(path.name))]
    test = torch.tensor([int(match[3]) < _TEST for _, match in matches])
    if not matches or bool(test.all()) or not bool(test.any()):
        what = "no folder" if not source.is_dir() else f"{len(matches)} of them"
        msg = (
            f"no spoken digits in {source}: expected recordings such as 7_jackson_32.wav, some "
            f"with numbers below {_TEST}, which are for testing, and some others; got {what}. Get "
            "them by: git clone https://github.com/Jakobovski/free-spoken-digit-dataset"
        )
        raise DatasetUnavailableError(msg)
    speakers = sorted({match[2] for _, match in matches})
    waveforms = [load_wav(path, _RATE)[0] for path, _ in matches]
    digits = torch.tensor([int(match[1]) for _, match in matches])
    spoken_by = torch.tensor([speakers.index(match[2]) for _, match in matches])
    return AudioDataset(
        **_split(waveforms, digits, spoken_by, test),
        labels=tuple("0123456789"),
        speakers=tuple(speakers),
        rate=_RATE,
        name="spoken digits",
    )


# First three formants of ten vowels, in hertz: the means of the men.
_FORMANTS = {
    "heed": (270, 2290, 3010),
    "hid": (390, 1990, 2550),
    "head": (530, 1840, 2480),
    "had": (660, 1720, 2410),
    "hod": (730, 1090, 2440),
    "hawed": (570, 840, 2410),
    "hood": (440, 1020, 2240),
    "who'd": (300, 870, 2240),
    "hud": (640, 1190, 2390),
    "heard": (490, 1350, 1690),
}
_BANDWIDTHS = (60, 90, 150)
# A period of the lowest voice.
_LEAST_SECONDS = 0.01


def synthesize_vowels(each: int = 12, seconds: float = 0.3, seed: int = 0) -> AudioDataset:
    """Return ten synthetic vowels at 8,000 samples a second, for where there are no recordings.

    Pulses of a voice of random pitch, and a little noise, go through three resonances. A quarter
    of the sounds is for testing.

    Args:
        each: Number of sounds of each vowel, at least 2.
        seconds: Length of the longest; the shortest is half as long.
        seed: Of what is random.

    Raises:
        ValueError: If there are too few sounds, or they are shorter than 10 ms.

    References:
        Control Methods Used in a Study of the Vowels. G. E. Peterson, H. L. Barney, 1952.
        Software for a cascade/parallel formant synthesizer. D. H. Klatt, 1980.

    Example:
        >>> vowels = synthesize_vowels(each=4, seconds=0.1)
        >>> len(vowels.train_waveforms), len(vowels.test_waveforms), vowels.labels[0]
        (30, 10, 'heed')
    """
    if each < 2:
        raise ValueError(f"each: expected at least 2, one of them for testing, got {each}.")
    if not seconds >= _LEAST_SECONDS:
        raise ValueError(f"seconds: expected at least {_LEAST_SECONDS}, got {seconds}.")
    generator = torch.Generator().manual_seed(seed)
    names = tuple(_FORMANTS)
    labels = torch.arange(len(names)).repeat_interleave(each)
    waveforms = [_vowel(names[label], seconds, generator) for label in labels.tolist()]
    test = torch.arange(len(labels)) % each < max(each // 4, 1)
    return AudioDataset(
        **_split(waveforms, labels, torch.zeros_like(labels), test),
        labels=names,
        speakers=("synthetic",),
        rate=_RATE,
        name="synthetic vowels",
        note="The sounds are synthetic vowels, not recordings.",
    )


def _vowel(name: str, seconds: float, generator: torch.Generator) -> torch.Tensor:
    import numpy as np
    from scipy.signal import lfilter

    length, pitch, glide, loudness = torch.rand(4, generator=generator).tolist()
    count = round(_RATE * seconds * (0.5 + 0.5 * length))
    time = torch.arange(count) / _RATE
    phase = (100 + 80 * pitch) * (1 + 0.2 * (glide - 0.5) * time / seconds) * time
    pulses = (phase.floor().diff(prepend=phase.new_full((1,), -1.0)) > 0).double()
    noise = 0.01 * torch.randn(count, generator=generator, dtype=torch.double)
    sound = (pulses + noise).numpy()
    for frequency, bandwidth in zip(_FORMANTS[name], _BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / _RATE)
        turn = 2 * radius * np.cos(2 * np.pi * frequency / _RATE)
        sound = lfilter([1 - turn + radius**2], [1, -turn, radius**2], sound)
    made = torch.from_numpy(sound) * torch.hann_window(count, periodic=False).sqrt()
    waveform: torch.Tensor = ((0.3 + 0.5 * loudness) * made / made.abs().max()).float()
    return waveform


def _split(
    waveforms: list[torch.Tensor],
    labels: torch.Tensor,
    speakers: torch.Tensor,
    test: torch.Tensor,
) -> dict[str, Any]:
    """Return the two parts of a data set, by the names of its arguments."""
    parts: dict[str, Any] = {}
    for part, chosen in (("train", ~test), ("test", test)):
        parts[f"{part}_waveforms"] = tuple(waveforms[i] for i in chosen.nonzero()[:, 0].tolist())
        parts[f"{part}_labels"] = labels[chosen]
        parts[f"{part}_speakers"] = speakers[chosen]
    return parts
