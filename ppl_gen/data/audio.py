"""Waveforms of one channel: read from and written to wav files, and cut into rows of one length."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ppl_gen.core.errors import check_count
from ppl_gen.distributions.discrete import check_tensor
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
# Above it a rate is no rate of sound.
_HIGHEST_RATE = 10**6
# What ffmpeg and sox write into a pipe for the number of bytes, which they do not know yet; of sox
# as many of them as are whole samples.
_UNKNOWN = (0xFFFFFFFF, 0x7FFFF000)
# Share of samples at full scale from which on a file is called clipped.
_CLIPPED = 1e-3


def load_wav(
    path: str | Path | BinaryIO, rate: int | None = None, *, resample: bool = False
) -> tuple[torch.Tensor, int]:
    """Read a waveform of one channel from a wav file.

    Args:
        path: A wav file of integer samples (PCM) of 8, 16, 24 or 32 bits: its path, that of a
            pipe, or a file object in binary mode. It is read once, and never sought in.
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
    if rate is not None:
        check_count("rate", rate)
    name, content = _content(path)
    found, samples = _parsed(name, content)
    if found.channels != 1:
        channels = "two (stereo)" if found.channels == 2 else found.channels
        msg = (
            f"{name}: expected one channel, got {channels}. Mix them first, for example by: "
            "ffmpeg -i in.wav -ac 1 out.wav"
        )
        raise ValueError(msg)
    if rate is not None and found.rate != rate and not resample:
        msg = (
            f"{name}: expected {rate} samples a second, got {found.rate}. Give resample=True to "
            "bring it to that rate."
        )
        raise ValueError(msg)
    waveform = _amplitudes(name, samples, found.bits)
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
        TypeError: If the waveform is no tensor, or one of whole numbers.
        ValueError: If the waveform has another shape, or amplitudes out of range.
    """
    check_amplitudes(waveform)
    waveform = waveform.detach()
    check_count("rate", rate)
    if waveform.ndim != 1 or len(waveform) == 0:
        msg = f"waveform: expected shape (sample,), got {tuple(waveform.shape)}."
        raise ValueError(msg)
    from scipy.io import wavfile

    samples = (waveform.cpu().double() * 2**15).round().clamp(-(2**15), 2**15 - 1)
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
        TypeError: If a waveform is no tensor, or a number is not whole.
        ValueError: If a row has no room beside the context, there are no waveforms, or one has
            another shape.

    Example:
        >>> chunks = cut([torch.arange(1.0, 7.0), torch.ones(2)], length=4, context=2)
        >>> chunks.x.tolist()
        [[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 0.0, 0.0]]
        >>> chunks.mask.int().tolist()
        [[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]
        >>> chunks.source.tolist()
        [0, 0, 1]
    """
    check_count("length", length)
    if context != 0:
        check_count("context", context)
    if context >= length:
        msg = (
            f"length: expected more than the context, which is {context} samples, got {length}. "
            "Take longer rows, or a network that sees less."
        )
        raise ValueError(msg)
    if len(waveforms) == 0:
        raise ValueError("waveforms: expected at least one, got none.")
    for number, waveform in enumerate(waveforms):
        check_tensor(f"waveforms[{number}]", waveform)
        if waveform.ndim != 1:
            msg = (
                f"waveforms[{number}]: expected shape (sample,), got {tuple(waveform.shape)}. Give "
                "a list of waveforms of one channel."
            )
            raise ValueError(msg)
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
class _Format:
    channels: int
    rate: int
    bits: int


def _content(source: str | Path | BinaryIO) -> tuple[str, bytes]:
    """Return the name of a file, for messages, and what is in it: read once, from first to last."""
    if isinstance(source, str | Path):
        return str(source), Path(source).read_bytes()
    if not hasattr(source, "read"):
        msg = f"path: expected a path or a file object, got {type(source).__name__}."
        raise TypeError(msg)
    return str(getattr(source, "name", "the wav file")), source.read()


def _parsed(name: str, content: bytes) -> tuple[_Format, bytes]:
    """Return a wav file's format and samples, or an error for what it must not be."""
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        got = f"one that begins with {content[:4]!r}" if content else "an empty file"
        msg = (
            f"{name}: expected a wav file, got {got}. Convert what is none, for example by: "
            "ffmpeg -i in.mp3 out.wav"
        )
        raise ValueError(msg)
    found, place = None, 12
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, place)
        place += 8
        if kind == b"data" and found is not None:
            return found, _samples(name, content[place:], size, found)
        if kind == b"fmt ":
            found = _format(name, content[place : place + size])
        place += size + size % 2
    raise ValueError(f"{name}: expected a format and samples, got a wav file cut short.")


def _format(name: str, content: bytes) -> _Format:
    if len(content) < 16:
        raise ValueError(f"{name}: expected a format and samples, got a wav file cut short.")
    tag, channels, rate, _, size, bits = struct.unpack("<HHIIHH", content[:16])
    if tag == _EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack("<H", content[24:26])
    if tag != _PCM or bits not in _BITS:
        got = f"{bits} bits" if tag == _PCM else _FORMATS.get(tag, f"the format {tag:#06x}")
        msg = (
            f"{name}: expected integer samples (PCM) of 8, 16, 24 or 32 bits, got {got}. Convert "
            "it, for example by: ffmpeg -i in.wav -c:a pcm_s16le out.wav"
        )
        raise ValueError(msg)
    if channels == 0 or not 0 < rate <= _HIGHEST_RATE or size != channels * bits // 8:
        msg = (
            f"{name}: expected at least one channel, a rate of up to {_HIGHEST_RATE:,}, and "
            f"{channels * bits // 8} bytes for a sample of each channel, got {channels} channels, "
            f"{rate} samples a second and {size} bytes: the file is damaged."
        )
        raise ValueError(msg)
    return _Format(channels, rate, bits)


def _samples(name: str, rest: bytes, size: int, form: _Format) -> bytes:
    """Return the samples of a file, of whose bytes from the first of them on some may be others."""
    width = form.channels * form.bits // 8
    if len(rest) < size and size in (*_UNKNOWN, *(most // width * width for most in _UNKNOWN)):
        size = len(rest)
    if len(rest) < size:
        msg = f"{name}: expected {size} bytes of samples, got {len(rest)}: the file is cut short."
        raise ValueError(msg)
    if size == 0:
        raise ValueError(f"{name}: expected samples, got an empty wav file.")
    if size % width:
        msg = f"{name}: expected samples of {width} bytes, got {size}: the file is damaged."
        raise ValueError(msg)
    return rest[:size]


def _amplitudes(name: str, samples: bytes, bits: int) -> torch.Tensor:
    """Return the amplitudes of integer samples."""
    if bits == 24:  # the upper bytes of 32
        wide = np.zeros((len(samples) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(samples, dtype=np.uint8).reshape(-1, 3)
        whole = wide.view("<i4")[:, 0] >> 8
    else:
        whole = np.frombuffer(samples, dtype="u1" if bits == 8 else f"<i{bits // 8}")
    values = torch.from_numpy(whole.astype(np.float64))
    values = values - 128 if bits == 8 else values  # of 8 bits they are from 0 on
    full = 2.0 ** (bits - 1)
    share = float(((values >= full - 1) | (values <= -full)).double().mean())
    if share >= _CLIPPED:
        msg = (
            f"{name}: {share:.1%} of the samples are at full scale, so the recording was probably "
            "clipped. Record it at a lower volume."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    return (values / full).float()
