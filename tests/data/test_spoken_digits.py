"""Spoken digits from their files, and the vowels that stand in for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppl_gen.data import (
    DatasetUnavailableError,
    load_spoken_digits,
    save_wav,
    synthesize_vowels,
)


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        save_wav(folder / name, torch.full((10 + number,), 0.5), 8000)


def test_the_data_set_itself(shared_data: Path) -> None:
    digits = load_spoken_digits(shared_data / "fsdd")
    assert (len(digits.train_waveforms), len(digits.test_waveforms)) == (2700, 300)
    assert len(digits.speakers) == 6
    assert digits.rate == 8000
    # Each digit is spoken by each speaker five times for testing, and 45 times for training.
    for labels, speakers, each in (
        (digits.train_labels, digits.train_speakers, 45),
        (digits.test_labels, digits.test_speakers, 5),
    ):
        assert torch.bincount(labels * 6 + speakers).tolist() == [each] * 60
    assert sum(map(len, digits.test_waveforms)) == 1_034_030
    assert max(float(waveform.abs().max()) for waveform in digits.train_waveforms) <= 1


@pytest.mark.parametrize("folder", ["", "recordings"])
def test_names_say_digit_speaker_and_split(tmp_path: Path, folder: str) -> None:
    write(
        tmp_path / folder,
        "7_zoe_0.wav",
        "3_adam_4.wav",
        "3_adam_5.wav",
        "9_zoe_49.wav",
        "noise.wav",
    )
    digits = load_spoken_digits(tmp_path)
    assert digits.speakers == ("adam", "zoe")
    assert digits.labels == tuple("0123456789")
    assert [len(waveform) for waveform in digits.train_waveforms] == [12, 13]
    assert digits.train_labels.tolist() == [3, 9]
    assert digits.train_speakers.tolist() == [0, 1]
    assert [len(waveform) for waveform in digits.test_waveforms] == [11, 10]
    assert digits.test_labels.tolist() == [3, 7]


def test_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailableError, match=r"got no folder\. Get them by: git clone"):
        load_spoken_digits(tmp_path / "none")
    with pytest.raises(DatasetUnavailableError, match="got 0 of them"):
        load_spoken_digits(tmp_path)
    write(tmp_path, "7_zoe_0.wav", "3_adam_4.wav")
    with pytest.raises(DatasetUnavailableError, match="got 2 of them"):
        load_spoken_digits(tmp_path)
    write(tmp_path, "7_zoe_8.wav")
    (tmp_path / "3_adam_9.wav").write_bytes(b"ID3")
    with pytest.raises(ValueError, match=r"3_adam_9.wav: expected a wav file"):
        load_spoken_digits(tmp_path)


def test_vowels_have_the_formants_of_their_table() -> None:
    vowels = synthesize_vowels(each=8, seconds=0.5)
    assert len(vowels.train_waveforms) == 60
    assert len(vowels.test_waveforms) == 20
    assert torch.bincount(vowels.test_labels).tolist() == [2] * 10
    assert "synthetic" in vowels.note
    for waveform in (*vowels.train_waveforms, *vowels.test_waveforms):
        assert 2000 <= len(waveform) <= 4000
        assert 0.3 <= float(waveform.abs().max()) <= 0.8

    def strength(vowel: str, hertz: int) -> float:
        """Return the power around a frequency, of all there is."""
        chosen = (vowels.train_labels == vowels.labels.index(vowel)).nonzero()[:, 0].tolist()
        shares = []
        for place in chosen:
            power = torch.fft.rfft(vowels.train_waveforms[place], n=8000).abs().square()
            shares.append(float(power[hertz - 120 : hertz + 120].sum() / power.sum()))
        return sum(shares) / len(shares)

    # The first formant of "hod" is at 730 hertz, that of "heed" at 270; its second is at 2,290.
    assert strength("hod", 730) > 2 * strength("heed", 730)
    assert strength("heed", 270) > 2 * strength("hod", 270)
    assert strength("heed", 2290) > 2 * strength("hod", 2290)
    again = synthesize_vowels(each=8, seconds=0.5)
    assert torch.equal(again.train_waveforms[7], vowels.train_waveforms[7])
    for options, message in (({"each": 1}, "each: .* got 1"), ({"seconds": 0.001}, "seconds: ")):
        with pytest.raises(ValueError, match=message):
            synthesize_vowels(**options)  # type: ignore[arg-type]
    other = synthesize_vowels(each=8, seconds=0.5, seed=1)
    assert len(other.train_waveforms[7]) != len(vowels.train_waveforms[7])
