"""Waveforms of one channel: read from and written to wav files, and cut into rows of one length."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ppl_gen.core.errors import check_count
from ppl_gen.distributions.mu_law import check_amplitudes

__all__ = ["Chunks", "cut", "load_wav", "save_wav"]

# By what the tag of a wav file's format means.
_PCM, _EXTENSIBLE = 1, 0xFFFE
_FORMATS = {
    2: "Microsoft ADPCM",
    3: "IEEE float",
    6: "A-law",
    7: "mu-law",
    0x11: "IMA ADPCM",
    0x31: "GSM 6.10",
    0x50: "MPEG",
    0x55: "MP3",
}
_BITS = (8, 16, 24, 32)
# Share of samples at full scale from which on a file is called clipped.
_CLIPPED = 1e-3


def load_wav(
    path: str | Path, rate: int | None = None, *, resample: bool = False
) -> tuple[torch.Tensor, int]:
    """Read a waveform of one channel from a wav file.

    Args:
        path: A wav file of integer samples (PCM) of 8, 16, 24 or 32 bits.
        rate: Samples a second that are wanted; None: as they come.
        resample: Whether to bring a file of another rate to the wanted one, by a polyphase filter.

    Returns:
        Amplitudes in [-1, 1], `(sample,)`, in float32, and the samples a second.

    Raises:
        ValueError: If it is no wav file, is damaged, is not PCM, has more than one channel, no
            samples, or another rate than the wanted one.

    Warns:
        UserWarning: If a thousandth of the samples or more are clipped.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "tone.wav")
        >>> save_wav(path, torch.linspace(0, 60, 800).sin() / 2, rate=8000)
        >>> waveform, rate = load_wav(path)
        >>> waveform.shape, rate
        (torch.Size([800]), 8000)
    """
    path = Path(path)
    if rate is not None:
        check_count("rate", rate)
    found = _header(path)
    if found.channels != 1:
        channels = "two (stereo)" if found.channels == 2 else found.channels
        msg = (
            f"{path}: expected one channel, got {channels}. Mix them first, for example by: "
            "ffmpeg -i in.wav -ac 1 out.wav"
        )
        raise ValueError(msg)
    if rate is not None and found.rate != rate and not resample:
        msg = (
            f"{path}: expected {rate} samples a second, got {found.rate}. Give resample=True to "
            "bring it to that rate."
        )
        raise ValueError(msg)
    waveform = _samples(path, found.bits)
    if rate is None or found.rate == rate:
        return waveform, found.rate
    from scipy.signal import resample_poly

    common = math.gcd(rate, found.rate)
    made = torch.from_numpy(resample_poly(waveform.numpy(), rate // common, found.rate // common))
    return made.clamp(-1.0, 1.0), rate


def save_wav(path: str | Path, waveform: torch.Tensor, rate: int) -> None:
    """Write a waveform to a wav file of 16 bits.

    Args:
        path: The file.
        waveform: Amplitudes in [-1, 1], `(sample,)`.
        rate: Samples a second.

    Raises:
        ValueError: If the waveform has another shape, or amplitudes out of range.
    """
    waveform = waveform.detach()
    check_count("rate", rate)
    if waveform.ndim != 1 or len(waveform) == 0:
        msg = f"waveform: expected shape (sample,), got {tuple(waveform.shape)}."
        raise ValueError(msg)
    check_amplitudes(waveform)
    from scipy.io import wavfile

    samples = (waveform.cpu().double() * 2**15).round().clamp(max=2**15 - 1)
    wavfile.write(path, rate, samples.to(torch.int16).numpy())


@dataclass(frozen=True, eq=False)
class Chunks:
    """Waveforms cut into rows of one length.

    Args:
        x: Amplitudes, `(row, sample)`; 0 after the end of a waveform.
        mask: Which samples are to be scored, `(row, sample)`: each of a waveform in one row alone.
        source: Which waveform a row is of, `(row,)`.
    """

    x: torch.Tensor
    mask: torch.Tensor
    source: torch.Tensor


def cut(waveforms: Sequence[torch.Tensor], length: int, context: int) -> Chunks:
    """Cut waveforms into rows of one length, each with as much of the past as a network sees.

    The first row of a waveform begins where it begins. Each further one repeats the last `context`
    samples of the row before, which are not scored again. With a network that sees no further, the
    log probabilities of the scored samples add up to those of the whole waveforms.

    Args:
        waveforms: Amplitudes, `(sample,)` each.
        length: Number of samples in a row.
        context: Number of samples before one that the network sees, its receptive field.

    Raises:
        ValueError: If a row has no room beside the context, or there are no waveforms.

    Example:
        >>> chunks = cut([torch.arange(1.0, 7.0), torch.ones(2)], length=4, context=2)
        >>> chunks.x.tolist()
        [[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 0.0, 0.0]]
        >>> chunks.mask.int().tolist()
        [[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]
        >>> chunks.source.tolist()
        [0, 0, 1]
    """
    if not 0 <= context < length:
        msg = (
            f"length: expected more than the context, which is {context} samples, got {length}. "
            "Take longer rows, or a network that sees less."
        )
        raise ValueError(msg)
    if not waveforms:
        raise ValueError("waveforms: expected at least one, got none.")
    step = length - context
    starts = [
        (source, start)
        for source, waveform in enumerate(waveforms)
        for start in range(0, max(len(waveform) - context, 1), step)
    ]
    x = waveforms[0].new_zeros(len(starts), length)
    mask = torch.zeros(len(starts), length, dtype=torch.bool)
    for row, (source, start) in enumerate(starts):
        part = waveforms[source][start : start + length]
        x[row, : len(part)] = part
        mask[row, context if start else 0 : len(part)] = True
    return Chunks(x, mask, torch.tensor([source for source, _ in starts]))


@dataclass(frozen=True)
class _Header:
    channels: int
    rate: int
    bits: int


def _header(path: Path) -> _Header:
    """Return what a wav file says of its samples, or an error for what it must not be."""
    with path.open("rb") as file:
        start = file.read(12)
        if len(start) < 12 or start[:4] != b"RIFF" or start[8:] != b"WAVE":
            msg = f"{path}: expected a wav file, got one that begins with {start[:4]!r}."
            raise ValueError(msg)
        header, size = None, None
        while size is None and len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                size = length
            elif name == b"fmt ":
                header = _format(path, file.read(length + length % 2))
            else:
                file.seek(length + length % 2, 1)
        if header is None or size is None:
            raise ValueError(f"{path}: expected a format and samples, got a wav file cut short.")
        there = _remaining(file)
    if there < size:
        msg = f"{path}: expected {size} bytes of samples, got {there}: the file is cut short."
        raise ValueError(msg)
    if size == 0:
        raise ValueError(f"{path}: expected samples, got an empty wav file.")
    return header


def _format(path: Path, content: bytes) -> _Header:
    if len(content) < 16:
        raise ValueError(f"{path}: expected a format and samples, got a wav file cut short.")
    tag, channels, rate, _, size, bits = struct.unpack("<HHIIHH", content[:16])
    if tag == _EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack("<H", content[24:26])
    if tag != _PCM or bits not in _BITS:
        got = f"{bits} bits" if tag == _PCM else _FORMATS.get(tag, f"the format {tag:#06x}")
        msg = (
            f"{path}: expected integer samples (PCM) of 8, 16, 24 or 32 bits, got {got}. Convert "
            "it, for example by: ffmpeg -i in.wav -c:a pcm_s16le out.wav"
        )
        raise ValueError(msg)
    if channels == 0 or rate == 0 or size != channels * bits // 8:
        msg = (
            f"{path}: expected at least one channel, a rate, and {channels * bits // 8} bytes for "
            f"a sample of each channel, got {channels} channels, {rate} samples a second and "
            f"{size} bytes: the file is damaged."
        )
        raise ValueError(msg)
    return _Header(channels, rate, bits)


def _remaining(file: BinaryIO) -> int:
    here = file.tell()
    return file.seek(0, 2) - here


def _samples(path: Path, bits: int) -> torch.Tensor:
    from scipy.io import wavfile

    with warnings.catch_warnings():
        # Of chunks that hold something else, such as the name of an artist.
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        samples = torch.from_numpy(wavfile.read(path)[1].astype("float64"))
    # Samples of 8 bits are from 0 on; those of 24 bits are read as the upper ones of 32.
    samples = samples - 128 if bits == 8 else samples
    full = 2.0 ** (31 if bits == 24 else bits - 1)
    step = 2.0 ** (8 if bits == 24 else 0)
    share = float(((samples >= full - step) | (samples <= -full)).double().mean())
    if share >= _CLIPPED:
        msg = (
            f"{path}: {share:.1%} of the samples are at full scale, so the recording was probably "
            "clipped. Record it at a lower volume."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    return (samples / full).float()
