"""Wav files: what is read comes out right, and what cannot be taken is refused by name."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_gen.data import cut, load_wav, save_wav

PCM, FLOAT, A_LAW, MP3, EXTENSIBLE = 1, 3, 6, 0x55, 0xFFFE


def wav(
    path: Path,
    samples: bytes,
    *,
    tag: int = PCM,
    channels: int = 1,
    rate: int = 8000,
    bits: int = 16,
    before: bytes = b"",
    more: bytes = b"",
) -> Path:
    """Write a wav file by hand, from the description of its format."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + more
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + before
    body += b"data" + struct.pack("<I", len(samples)) + samples + b"\0" * (len(samples) % 2)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def packed(values: list[int], bits: int) -> bytes:
    if bits == 8:  # from 0 on
        return bytes(value + 128 for value in values)
    return b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in values)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_integers_of_any_width(tmp_path: Path, bits: int) -> None:
    full = 2 ** (bits - 1)
    values = [-full // 2, -1, 0, 1, full // 4, 0, 3, -full // 8 - 1]
    waveform, rate = load_wav(wav(tmp_path / "a.wav", packed(values, bits), bits=bits, rate=44100))
    assert waveform.dtype == torch.float32
    assert rate == 44100
    expected = (torch.tensor(values, dtype=torch.double) / full).float()
    assert torch.equal(waveform, expected)


def test_other_chunks_and_the_long_form_of_the_header(tmp_path: Path) -> None:
    info = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0"
    guid = struct.pack("<HHIH", 22, 16, 4, PCM) + bytes.fromhex("000000001000800000aa00389b71")
    values = packed([5, -7, 9], 16)
    path = wav(tmp_path / "a.wav", values, tag=EXTENSIBLE, before=info, more=guid)
    assert (load_wav(path)[0] * 2**15).tolist() == [5, -7, 9]


def test_what_cannot_be_sought_in_is_read(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", packed([5, -7, 9], 16), before=b"JUNK\1\0\0\0x\0")
    whole = path.read_bytes()
    expected = load_wav(path)[0]
    assert torch.equal(load_wav(io.BytesIO(whole))[0], expected)
    reader, writer = os.pipe()
    with open(reader, "rb") as there, open(writer, "wb") as here:
        here.write(whole)
        here.close()
        assert torch.equal(load_wav(there)[0], expected)
    named = tmp_path / "pipe.wav"
    os.mkfifo(named)
    thread = threading.Thread(target=named.write_bytes, args=(whole,))
    thread.start()
    assert torch.equal(load_wav(named)[0], expected)
    thread.join()


def test_a_size_that_was_not_known_is_that_of_the_rest(tmp_path: Path) -> None:
    whole = wav(tmp_path / "a.wav", packed([5, -7, 9], 16)).read_bytes()
    for size in (0xFFFFFFFF, 0x7FFFF000):
        streamed = whole.replace(b"data" + struct.pack("<I", 6), b"data" + struct.pack("<I", size))
        assert (load_wav(io.BytesIO(streamed))[0] * 2**15).tolist() == [5, -7, 9]
    with pytest.raises(ValueError, match=r"samples of 2 bytes, got 5: the file is damaged"):
        load_wav(io.BytesIO(streamed[:-1]))
    # A size of whole samples, of 3 bytes.
    whole = wav(tmp_path / "b.wav", packed([5, -7, 9], 24), bits=24).read_bytes()
    rounded = struct.pack("<I", 0x7FFFF000 // 3 * 3)
    streamed = whole.replace(b"data" + struct.pack("<I", 9), b"data" + rounded)[:-1]
    assert (load_wav(io.BytesIO(streamed))[0] * 2**23).tolist() == [5, -7, 9]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples = torch.randint(-(2**15), 2**15, (1000,)) * 0.9
    waveform = samples.round() / 2**15
    save_wav(tmp_path / "a.wav", waveform, 8000)
    again, rate = load_wav(tmp_path / "a.wav", 8000)
    assert rate == 8000
    assert torch.equal(again, waveform)
    save_wav(tmp_path / "full.wav", torch.tensor([-1.0, 1.0]), 8000)
    with pytest.warns(UserWarning, match=r"full.wav: 100.0% of the samples are at full scale"):
        again = load_wav(tmp_path / "full.wav")[0]
    assert again.tolist() == [-1.0, 1 - 2.0**-15]


def test_only_waveforms_are_written(tmp_path: Path) -> None:
    for array in (np.zeros(5), [0.0, 0.5], torch.zeros(5, dtype=torch.int16)):
        with pytest.raises(TypeError, match="waveform: expected"):
            save_wav(tmp_path / "a.wav", array, 8000)  # type: ignore[arg-type]
    for wrong in (torch.zeros(2, 5), torch.zeros(0)):
        with pytest.raises(ValueError, match="expected shape"):
            save_wav(tmp_path / "a.wav", wrong, 8000)
    for wrong in (torch.tensor([0.0, 1.2]), torch.tensor([0.0, torch.nan])):
        with pytest.raises(ValueError, match="from -1 to 1"):
            save_wav(tmp_path / "a.wav", wrong, 8000)
    assert not list(tmp_path.iterdir())


def test_what_has_a_gradient_is_written(tmp_path: Path) -> None:
    save_wav(tmp_path / "a.wav", torch.full((4,), 0.5, requires_grad=True), 8000)
    assert load_wav(tmp_path / "a.wav")[0].tolist() == [0.5] * 4


def test_rates_are_positive(tmp_path: Path) -> None:
    for rate in (0, -8000):
        with pytest.raises(ValueError, match="rate: expected at least 1"):
            save_wav(tmp_path / "a.wav", torch.zeros(4), rate)
        with pytest.raises(ValueError, match="rate: expected at least 1"):
            load_wav(tmp_path / "a.wav", rate, resample=True)


def test_a_header_that_contradicts_itself(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", packed([1, 2, 3, 4], 16))
    whole = path.read_bytes()
    place = whole.index(b"fmt ") + 8
    # Two bytes from each of these places on: channels, rate, its upper half, bytes for a sample.
    for offset, value, got in (
        (2, 0, "0 channels"),
        (4, 0, "0 samples a"),
        (6, 2**15, "2147491648 samples a"),
        (12, 4, "4 bytes"),
    ):
        changed = bytearray(whole)
        changed[place + offset : place + offset + 2] = value.to_bytes(2, "little")
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"got .*{got}.* the file is damaged"):
            load_wav(path)


def test_another_rate_is_refused_or_resampled(tmp_path: Path) -> None:
    time = torch.arange(16_000) / 16_000
    save_wav(tmp_path / "a.wav", (2 * np.pi * 440 * time).sin() / 2, 16_000)
    with pytest.raises(ValueError, match=r"expected 8000 samples a second, got 16000.*resample"):
        load_wav(tmp_path / "a.wav", 8000)
    waveform, rate = load_wav(tmp_path / "a.wav", 8000, resample=True)
    assert rate == 8000
    assert len(waveform) == 8000
    assert waveform.dtype == torch.float32
    expected = (2 * np.pi * 440 * torch.arange(8000) / 8000).sin() / 2
    # A tone well below half the new rate passes the filter, but for its ripple of half a percent.
    assert float((waveform - expected)[100:-100].abs().max()) < 0.005


@pytest.mark.parametrize(
    ("tag", "bits", "name"),
    [
        (FLOAT, 32, "IEEE float"),
        (A_LAW, 8, "A-law"),
        (7, 8, "mu-law"),
        (MP3, 0, "MP3"),
        (2, 4, "Microsoft ADPCM"),
        (0x1234, 16, "the format 0x1234"),
        (PCM, 12, "12 bits"),
    ],
)
def test_what_is_not_pcm_is_named(tmp_path: Path, tag: int, bits: int, name: str) -> None:
    path = wav(tmp_path / "a.wav", b"\0" * 64, tag=tag, bits=bits)
    with pytest.raises(ValueError, match=rf"a.wav: expected integer samples .*, got {name}\. Conv"):
        load_wav(path)


def test_more_channels(tmp_path: Path) -> None:
    for channels, name in ((2, r"two \(stereo\)"), (6, "6")):
        path = wav(tmp_path / "a.wav", b"\0" * 24, channels=channels)
        with pytest.raises(ValueError, match=f"expected one channel, got {name}. Mix"):
            load_wav(path)


def test_what_is_no_whole_wav_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for content, message in {
        b"": "expected a wav file, got an empty file",
        b"\xff\xfb\x90\x64" + b"\0" * 100: r"begins with b'\\xff\\xfb\\x90d'\. Convert.*ffmpeg",
        b"ID3\x04\0\0\0\0\0\0\0\0": re.escape("begins with b'ID3\\x04'"),
        b"RIFF\0\0\0\0AVI \0\0\0\0": "expected a wav file",
        b"RIFF\0\0\0\0WAVE": "cut short",
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0": "cut short",
        b"RIFF\0\0\0\0WAVEdata\0\0\0\0": "cut short",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_wav(path)
    whole = wav(path, packed([1, 2, 3, 4], 16)).read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="expected 8 bytes of samples, got 5: the file is cut"):
        load_wav(path)
    path.write_bytes(whole.replace(b"data\x08", b"data\xff"))
    with pytest.raises(ValueError, match="expected 255 bytes of samples, got 8: the file is cut"):
        load_wav(path)
    with pytest.raises(TypeError, match="path: expected a path or a file object, got NoneType"):
        load_wav(None)  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError):
        load_wav(tmp_path)
    with pytest.raises(ValueError, match="an empty wav file"):
        load_wav(wav(path, b""))
    with pytest.raises(FileNotFoundError):
        load_wav(tmp_path / "none.wav")


def test_clipped_recordings_are_told(tmp_path: Path) -> None:
    for bits in (8, 16, 24, 32):
        full = 2 ** (bits - 1)
        path = wav(tmp_path / "a.wav", packed([full - 1, -full] + [0] * 98, bits), bits=bits)
        with pytest.warns(UserWarning, match=r"a.wav: 2.0% of the samples .* clipped"):
            load_wav(path)
        few = wav(tmp_path / "b.wav", packed([full - 1] + [0] * 1999, bits), bits=bits)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_wav(few)


def test_each_sample_is_scored_once_after_its_past() -> None:
    torch.manual_seed(0)
    lengths = [1, 5, 6, 7, 8, 12, 13, 40]
    waveforms = [1 + torch.rand(length) for length in lengths]
    context = 3
    rows = cut(waveforms, 8, context)
    assert rows.x.shape == rows.mask.shape
    assert rows.x.shape[1] == 8
    assert bool((rows.x[rows.mask] > 0).all())
    for number, waveform in enumerate(waveforms):
        chosen = rows.source == number
        assert torch.equal(rows.x[chosen][rows.mask[chosen]], waveform)
        for place, (x, mask) in enumerate(zip(rows.x[chosen], rows.mask[chosen], strict=True)):
            assert bool(mask.any())
            first = int(mask.nonzero()[0])
            assert first == (context if place else 0)
            start = place * (8 - context)
            assert torch.equal(x[:first], waveform[start : start + first])
    assert len(cut(waveforms, 40, 39).x) == len(waveforms)


def test_rows_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="more than the context, which is 8 samples, got 8"):
        cut([torch.ones(5)], 8, 8)
    with pytest.raises(ValueError, match="context: expected at least 1, got -1"):
        cut([torch.ones(5)], 8, -1)
    with pytest.raises(TypeError, match=r"length: expected a whole number, got 8\.5"):
        cut([torch.ones(5)], 8.5, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one, got none"):
        cut([], 8, 2)
    for waveforms in (torch.ones(9), [torch.ones(1, 9)]):
        with pytest.raises(ValueError, match=r"waveforms\[0\]: expected shape \(sample,\)"):
            cut(waveforms, 8, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"waveforms\[1\]: expected a tensor, got ndarray"):
        cut([torch.ones(9), np.ones(9)], 8, 2)  # type: ignore[list-item]
