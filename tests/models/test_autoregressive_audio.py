"""Waveforms by an autoregressive network: scored exactly, in rows, and sampled at any length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch

import ppl_gen as pg
from ppl_gen.core import SiteError
from ppl_gen.data import cut
from ppl_gen.distributions import AutoregressiveNetwork, Elements, mu_law_decode
from ppl_gen.distributions.sampling.native import NativeSampler
from ppl_gen.inference import SVI
from ppl_gen.models import AutoregressiveAudio
from ppl_gen.models.networks import MADE, OrderAgnosticMADE, WaveNet

FOUR = Elements("categorical", 4)


def made(length: int = 24, classes: int | None = 3, **options: object) -> AutoregressiveAudio:
    torch.manual_seed(0)
    network = WaveNet(length, 6, 6, 3, 3, FOUR, classes).double()
    return AutoregressiveAudio(network, classes, **options)  # type: ignore[arg-type]


def test_rows_with_their_past_add_up_to_whole_recordings() -> None:
    pair = made(24)
    network = pair.network
    assert isinstance(network, WaveNet)
    assert network.receptive_field == 9
    torch.manual_seed(1)
    recordings = [mu_law_decode(torch.randint(4, (n,)), 4) for n in (24, 31, 70, 10)]
    labels = torch.tensor([2, 0, 1, 1])
    rows = cut(recordings, 24, network.receptive_field)
    x, y = pair.encode(rows.x), labels[rows.source]
    found = torch.zeros(4, dtype=torch.double).index_add_(
        0, rows.source, pair.log_prob(x, y, rows.mask)
    )
    for number, recording in enumerate(recordings):
        whole = AutoregressiveAudio(network.with_length(len(recording)), 3)
        levels, label = pair.encode(recording)[None], labels[number : number + 1]
        assert float(found[number]) == pytest.approx(float(whole.log_prob(levels, label)))
    bits = -float(found.sum()) / math.log(2) / sum(map(len, recordings))
    assert pair.bits_per_sample(x, y, rows.mask) == pytest.approx(bits)
    # With less of the past than the network sees, they do not: the test can fail.
    short = cut(recordings, 24, 4)
    other = pair.log_prob(pair.encode(short.x), labels[short.source], short.mask).sum()
    assert abs(float(other - found.sum())) > 1e-6


def test_what_is_not_scored_does_not_matter_after_the_end() -> None:
    pair = made()
    x, y = torch.randint(4, (5, 24)), torch.tensor([0, 1, 2, 0, 1])
    mask = torch.arange(24).expand(5, -1) < 15
    torch.testing.assert_close(
        pair.log_prob(torch.where(mask, x, 0), y, mask), pair.log_prob(x, y, mask)
    )
    every = torch.ones_like(mask)
    torch.testing.assert_close(pair.log_prob(x, y, every), pair.log_prob(x, y))


def test_the_site_is_observed_under_the_plate_and_scored_by_its_mask() -> None:
    for classes in (None, 3):
        pair = made(classes=classes)
        x = torch.randint(4, (5, 24))
        y = None if classes is None else torch.tensor([0, 1, 2, 0, 1])
        mask = torch.rand(5, 24) < 0.5
        trace = poutine.trace(pair.model).get_trace(x, y, mask)
        trace.compute_log_prob()
        site: Any = trace.nodes["x"]
        assert site["log_prob"].shape == (5,)
        torch.testing.assert_close(site["log_prob"].detach(), pair.log_prob(x, y, mask))
        assert site["fn"].sample().shape == (5, 24)
        assert bool(site["fn"].support.check(x).all())


def test_an_untrained_network_needs_all_bits_of_a_sample() -> None:
    torch.manual_seed(0)
    pair = AutoregressiveAudio(WaveNet(200, 16, 16, 4, 4))
    bits = pair.bits_per_sample(torch.randint(256, (20, 200)))
    # Of even probabilities 8; numbers of a scale of s cost about s^2 / 2 / ln 2 more, and those
    # of an untrained network have a scale of a few tenths.
    assert 8 <= bits < 8.1


def test_training_finds_the_entropy_of_a_periodic_sound() -> None:
    torch.manual_seed(0)
    phase = torch.randint(4, (64, 1))
    x = (torch.arange(40) + phase) % 4  # after the first sample all is known: 2 bits in all
    pair = AutoregressiveAudio(WaveNet(40, 8, 8, 3, 3, FOUR))
    mask = torch.ones(64, 40, dtype=torch.bool)
    method = SVI(guide="pair", batch_size=16, epochs=30, learning_rate=2e-2)
    posterior = pg.fit(pair, {"x": x, "mask": mask}, method, seed=0)
    trained = posterior.pair
    assert isinstance(trained, AutoregressiveAudio)
    assert 2 / 40 - 1e-6 <= trained.bits_per_sample(x) < 2 / 40 + 0.02
    drawn = trained.encode(trained.sample(200, seed=1))
    assert float((drawn.diff() % 4 == 1).double().mean()) > 0.98


def test_the_prior_is_that_of_every_parameter() -> None:
    pair = made(prior_scale=0.5)
    x, y = torch.randint(4, (5, 24)), torch.tensor([0, 1, 2, 0, 1])
    mask = torch.rand(5, 24) < 0.5
    trace = poutine.trace(pair.model).get_trace(x, y, mask)
    normal = torch.distributions.Normal(0.0, 0.5)
    prior = sum(normal.log_prob(p).sum() for p in pair.parameters())
    total = prior + pair.log_prob(x, y, mask).sum()
    torch.testing.assert_close(trace.log_prob_sum(), total)


def test_samples_of_any_length() -> None:
    pair = made(rate=100)
    y = torch.tensor([0, 2])
    assert pair.sample(y).shape == (2, 24)
    long = pair.sample(y, seconds=1.5, seed=3)
    assert long.shape == (2, 150)
    assert torch.equal(mu_law_decode(pair.encode(long), 4), long)
    assert torch.equal(pair.sample(y, seconds=1.5, seed=3), long)
    # They are those of a network made for that length.
    other = WaveNet(150, 6, 6, 3, 3, FOUR, 3).double()
    other.load_state_dict(pair.network.state_dict())
    assert torch.equal(AutoregressiveAudio(other, 3).sample(y, seed=3), long)
    assert pair.network.event_shape == (24,)
    assert made(classes=None).sample(4).shape == (4, 24)


def test_a_beginning_is_gone_on_with() -> None:
    pair = made(rate=100)
    beginning = pair.sample(torch.tensor([1]), seconds=0.5, seed=1)[0]
    gone_on = pair.sample(torch.tensor([1, 1, 2]), seconds=0.8, given=beginning, seed=2)
    assert gone_on.shape == (3, 80)
    assert torch.equal(gone_on[:, :50], beginning.expand(3, -1))
    assert not torch.equal(gone_on[0], gone_on[1])
    with pytest.raises(ValueError, match="fewer than the 50 samples that are drawn, got 50"):
        pair.sample(torch.tensor([1]), seconds=0.5, given=beginning)


def test_evenly_spaced_levels_are_those_of_16_bits() -> None:
    network = WaveNet(5, 4, 4, 2, 2, Elements("logistic_mixture", 2**16, 2))
    pair = AutoregressiveAudio(network, mu_law=False)
    values = torch.tensor([-(2**15), -1, 0, 1, 2**15 - 1])
    levels = pair.encode(values / 2**15)
    assert levels.tolist() == [0, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1]
    assert torch.equal(pair.decode(levels) * 2**15, values.float())
    assert pair.encode(torch.ones(1)).tolist() == [2**16 - 1]
    assert pair.encode(torch.tensor([0.5, 1.0]).half()).tolist() == [3 * 2**14, 2**16 - 1]
    waveform = pair.sample(2)
    assert float(waveform.abs().max()) <= 1
    assert torch.equal(pair.decode(pair.encode(waveform)), waveform)


def test_two_draws_of_as_many_seconds_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[NativeSampler] = []

    class Counted(NativeSampler):
        def __init__(self, network: AutoregressiveNetwork) -> None:
            planned.append(self)
            super().__init__(network)

    monkeypatch.setattr("ppl_gen.distributions.sampling.draw.NativeSampler", Counted)
    pair, y = made(), torch.tensor([0, 1])
    first = pair.sample(y, seconds=0.0125)
    assert first.shape == (2, 100)
    assert torch.equal(pair.sample(y, seconds=0.0125), first)
    assert len(planned) == 1
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(-3)
    assert not torch.equal(pair.sample(y, seconds=0.0125), first)
    assert pair.sample(y, seconds=0.025).shape == (2, 200)


def test_what_cannot_be_taken_is_refused() -> None:
    pair = made()
    x, y = torch.randint(4, (5, 24)), torch.tensor([0, 1, 2, 0, 1])
    for mask, message in (
        (torch.ones(5, 23, dtype=torch.bool), r"expected booleans of shape \(5, 24\)"),
        (torch.ones(5, 24), r"float32 of shape \(5, 24\)\. Write mask.bool"),
        (torch.zeros(5, 24, dtype=torch.bool), "none that is true"),
        ([[True] * 24] * 5, "got list"),
    ):
        with pytest.raises(SiteError, match=message):
            pair.validate(x, y, mask)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="integers from 0 to 3"):
        pair.log_prob(4 + x, y)
    with pytest.raises(ValueError, match=r"sequences, \(length,\), got event_shape=\(4, 4\)"):
        AutoregressiveAudio(MADE((4, 4), (8,)))
    with pytest.raises(TypeError, match="with_length, as WaveNet has it, got MADE"):
        AutoregressiveAudio(MADE((4,), (8,))).sample(2, seconds=0.01)
    with pytest.raises(ValueError, match="seconds"):
        pair.sample(y, seconds=-1.0)
    ordered = AutoregressiveAudio(OrderAgnosticMADE((24,), (8,), FOUR)).eval()
    assert bool(ordered.log_prob(x).isfinite().all())
    for some in (ordered, ordered.train()):
        with pytest.raises(ValueError, match="mask: expected none, since a OrderAgnosticMADE"):
            some.distribution(None, torch.ones(5, 24, dtype=torch.bool))
    even = AutoregressiveAudio(pair.network, 3, mu_law=False)
    for either in (pair, even):
        with pytest.raises(ValueError, match="from -1 to 1, got 3"):
            either.encode(torch.tensor([3.0]))
        with pytest.raises(TypeError, match=r"got torch\.int16\. Write waveform / 32768"):
            either.encode(torch.zeros(3, dtype=torch.int16))
        with pytest.raises(ValueError, match="level: expected integers from 0 to 3, got 4"):
            either.decode(torch.tensor([0, 4]))
        for array in (np.zeros(3), [0.0]):
            with pytest.raises(TypeError, match="waveform: expected a tensor, got"):
                either.encode(array)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="level: expected a tensor, got"):
                either.decode(array)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="given: expected a tensor, got"):
                either.sample(y, given=array)  # type: ignore[arg-type]
