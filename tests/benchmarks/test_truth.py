"""What networks reach on real data is measured by parts of the examples."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.usefixtures("bench")
def test_what_is_taken_of_the_examples_is_there(tmp_path: Path) -> None:
    truth = importlib.import_module("likelihoods.truth")
    made: SimpleNamespace = truth.made_orderings.parse([])
    assert made.hidden_sizes
    assert made.batch_size * made.learning_rate > 0

    example = truth.wavenet_digits
    small = "--layers 2 --cycle 2 --features 4 --skip 4 --row-length 600".split()
    options = example.parse(["--data-dir", str(tmp_path / "none"), *small])
    dataset = example.load_recordings(options.dataset, options.data_dir)
    assert dataset.name == "synthetic vowels"
    pair = example.make_pair(dataset, options)
    data = example.rows_of(pair, dataset.test_waveforms[:3], dataset.test_labels[:3])
    assert int(data["mask"].sum()) == sum(map(len, dataset.test_waveforms[:3]))
    # Of an untrained network: of 256 levels, each about as likely.
    assert 7 < pair.bits_per_sample(**data) < 9
