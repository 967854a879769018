"""Images by an autoregressive network: closed forms, saving, resuming, errors."""

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ppl_gen as pg
from ppl_gen.core import LoadError, SiteError
from ppl_gen.core.description import PAIRS, describe, rebuild
from ppl_gen.distributions import AutoregressiveNetwork, Elements
from ppl_gen.inference import SVI, EpochInfo
from ppl_gen.models import AutoregressiveImage, autoregressive_likelihood
from ppl_gen.models.networks import FVBN, MADE, NADE, GatedPixelCNN, PixelCNN

SHAPE = (3, 3)
GRAYS = Elements("categorical", 4)
NETWORKS: dict[str, Any] = {
    "fvbn": lambda **more: FVBN(SHAPE, **more),
    "nade": lambda **more: NADE(SHAPE, hidden_size=4, **more),
    "made": lambda **more: MADE(SHAPE, hidden_sizes=(8,), **more),
    "pixelcnn": lambda **more: PixelCNN(SHAPE, features=4, layers=1, **more),
    "gated pixelcnn": lambda **more: GatedPixelCNN(SHAPE, features=4, layers=2, **more),
}
LABELS = torch.tensor([0, 1, 2, 0, 1])
COLOURED = AutoregressiveImage(MADE((2, 4, 5), hidden_sizes=(8,)))


def made(num_classes: int | None = None, **more: Any) -> AutoregressiveImage:
    torch.manual_seed(0)
    network = MADE(SHAPE, hidden_sizes=(8,), context_size=num_classes, **more)
    return AutoregressiveImage(network, num_classes)


def images(n: int = 5, levels: int = 2) -> torch.Tensor:
    return torch.randint(levels, (n, *SHAPE), generator=torch.Generator().manual_seed(1))


def params(pair: nn.Module | None) -> list[torch.Tensor]:
    assert pair is not None
    return [p.detach() for p in pair.parameters()]


def test_probabilities_of_each_class_sum_to_one() -> None:
    pair = made(num_classes=3)
    every = torch.cartesian_prod(*[torch.arange(2)] * 9).reshape(-1, *SHAPE)
    for label in range(3):
        total = pair.log_prob(every, torch.full((512,), label)).exp().sum()
        assert float(total) == pytest.approx(1.0, abs=1e-5)
    assert not torch.equal(*(pair.log_prob(every, torch.full((512,), c)) for c in (0, 1)))


def test_it_does_not_matter_how_many_rows_are_scored_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, x = made(num_classes=3), images()
    whole = pair.log_prob(x, LABELS)
    monkeypatch.setattr(autoregressive_likelihood, "_CHUNK", 2 * 9 * 32)  # two rows of nine pixels
    torch.testing.assert_close(pair.log_prob(x, LABELS), whole)
    direct = pair.distribution(LABELS).log_prob(x)
    torch.testing.assert_close(whole, direct.double())


def test_bits_of_uniform_grays() -> None:
    pair = made(elements=GRAYS)
    for parameter in pair.parameters():
        nn.init.zeros_(parameter)
    bits = pair.bits_per_dim(images(levels=4))
    torch.testing.assert_close(bits, torch.full((5,), 2.0, dtype=torch.float64))


def test_the_maximum_likelihood_of_two_pixels_is_their_entropy() -> None:
    """A fully visible network of two pixels can have any distribution of them."""
    counts = torch.tensor([5, 1, 2, 8])
    every = torch.cartesian_prod(*[torch.arange(2)] * 2).reshape(-1, 1, 2)
    x = every.repeat_interleave(counts, 0)
    shares = counts / counts.sum()
    method = SVI(guide="pair", steps=400, learning_rate=0.1)
    posterior = pg.fit(AutoregressiveImage(FVBN((1, 2))), {"x": x}, method, progress=False)
    trained = posterior.pair
    assert isinstance(trained, AutoregressiveImage)
    torch.testing.assert_close(trained.log_prob(every).exp().float(), shares, atol=1e-3, rtol=0)
    assert posterior.history is not None
    assert float(posterior.history[-1]) == pytest.approx(-float((counts * shares.log()).sum()))


def test_other_methods_name_the_one_that_trains_parameters() -> None:
    pair = AutoregressiveImage(MADE((2, 2), (3,)))
    with pytest.raises(ValueError, match=r'trained by SVI\(guide="pair"\)'):
        pg.fit(pair, {"x": torch.ones(5, 2, 2)}, SVI(), progress=False)


def test_a_network_may_be_trained_for_as_long_as_one_likes() -> None:
    """No warning that the loss still falls, and no bound where there is nothing to infer."""
    method = SVI(guide="pair", steps=400, learning_rate=1e-3)
    posterior = pg.fit(made(), {"x": images(64)}, method, progress=False)
    assert posterior.history is not None
    assert float(posterior.history[100] - posterior.history[199]) > 2
    assert posterior.provenance["converged"] is False
    assert posterior.warnings == ()
    assert posterior.elbo is None


@pytest.mark.parametrize("batch_size", [None, 20])
def test_the_map_of_one_pixel(batch_size: int | None) -> None:
    """30 of 40 pixels are one: 30 - 40 sigmoid(b) - b / s^2 = 0 at the mode of the logit b.

    Were the prior scaled with the mini-batches, which are two, b would be smaller by 0.2.
    """
    x = (torch.arange(40) < 30).long().reshape(40, 1, 1)
    method = SVI(guide="pair", steps=600, batch_size=batch_size, learning_rate=0.02)
    pair = AutoregressiveImage(FVBN((1, 1)), prior_scale=0.5)
    trained = pg.fit(pair, {"x": x}, method, progress=False).pair
    assert isinstance(trained, AutoregressiveImage)
    zero, one = trained.log_prob(torch.tensor([0, 1]).reshape(2, 1, 1)).tolist()
    low, high = 0.0, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        rises = 30 - 40 / (1 + math.exp(-middle)) - middle / 0.25 > 0
        low, high = (middle, high) if rises else (low, middle)
    # Steps on mini-batches end within noise that shrinks with their size.
    assert one - zero == pytest.approx(low, abs=1e-3 if batch_size is None else 0.05)


def test_the_prior_is_a_normal_density_of_every_parameter() -> None:
    pair = AutoregressiveImage(made().network, prior_scale=0.7)
    x = images()
    with torch.no_grad():
        found = pyro.poutine.trace(pair.model).get_trace(x).log_prob_sum()
        normal = torch.distributions.Normal(0.0, 0.7)
        prior = sum(normal.log_prob(p).sum() for p in pair.parameters())
    torch.testing.assert_close(found, pair.log_prob(x).sum().float() + prior)


def test_binary_pixels_are_drawn_anew_for_each_batch() -> None:
    pair = made()
    gray = torch.rand(1, *SHAPE).expand(4000, *SHAPE)
    first, second = (pair.prepare(gray)["x"] for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    # The standard error of a share of 4000 is at most 0.008.
    assert float((first.mean(0) - gray[0]).abs().max()) < 0.04
    binary = images().float()
    assert torch.equal(pair.prepare(binary)["x"], binary)
    whole = images()
    assert pair.prepare(whole)["x"] is whole
    gray_pair = made(elements=GRAYS)
    assert gray_pair.prepare(binary)["x"] is binary
    method = SVI(guide="pair", epochs=2, batch_size=16)
    pg.fit(pair, {"x": gray[:64]}, method, progress=False)
    with pytest.raises(SiteError, match=r"between two of them\. Draw binary ones first"):
        pair.log_prob(gray[:2])


class Dropping(AutoregressiveNetwork):
    """A network whose numbers, which see nothing, are dropped in training."""

    def __init__(self) -> None:
        super().__init__(SHAPE, Elements())
        self.bias = nn.Parameter(torch.ones(9))
        self.drop = nn.Dropout(0.5)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.drop(self.bias.expand(len(x), -1)).reshape(-1, *SHAPE, 1)  # type: ignore[no-any-return]


def test_a_network_is_evaluated_and_left_in_training() -> None:
    pair = AutoregressiveImage(Dropping()).train()
    x = torch.ones(2, *SHAPE)
    expected = 9 * math.log(torch.ones(()).sigmoid())
    assert pair.log_prob(x).tolist() == pytest.approx([expected] * 2)
    pair.sample(2)
    assert pair.network.drop.training  # type: ignore[union-attr]


def test_draws() -> None:
    pair = made(num_classes=3, elements=GRAYS)
    before = torch.get_rng_state()
    drawn = pair.sample(LABELS, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn.shape == (5, *SHAPE)
    assert torch.equal(drawn, pair.sample(LABELS, seed=3))
    assert not torch.equal(drawn, pair.sample(LABELS, seed=4))
    pair.validate(drawn, LABELS)
    given = torch.full(SHAPE, math.nan)
    given[0] = torch.tensor([3.0, 0.0, 1.0])
    completed = pair.sample(LABELS, given=given)
    assert torch.equal(completed[:, 0], given[0].long().expand(5, -1))
    likeliest = pair.sample(LABELS, top_p=1e-6)
    assert torch.equal(likeliest, pair.sample(LABELS, top_p=1e-6, seed=9))


def test_the_share_of_draws_is_their_probability() -> None:
    pair = made()
    drawn = pair.sample(4000)
    ones = pair.network().log_prob(drawn).exp().mean()  # the expectation of p(x) is sum p(x)^2
    every = torch.cartesian_prod(*[torch.arange(2)] * 9).reshape(-1, *SHAPE)
    p = pair.log_prob(every).exp()
    spread = float(((p**3).sum() - (p**2).sum() ** 2).sqrt()) / math.sqrt(4000)
    assert abs(float(ones.detach()) - float((p**2).sum())) < 5 * spread


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_pair_is_rebuilt_with_its_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](elements=GRAYS, context_size=3)
    pair = AutoregressiveImage(network, num_classes=3, prior_scale=2.0)
    data = {"x": images(levels=4), "y": LABELS}
    posterior = pg.fit(pair, data, SVI(guide="pair", steps=2), progress=False)
    assert isinstance(posterior.pair, AutoregressiveImage)
    loaded = pg.load(posterior.save(tmp_path / "run")).pair
    assert isinstance(loaded, AutoregressiveImage)
    assert type(loaded.network) is type(network)
    assert loaded.network.elements == GRAYS
    assert loaded.prior_scale == 2.0
    assert describe(loaded, PAIRS) == describe(pair, PAIRS)
    assert torch.equal(loaded.log_prob(**data), posterior.pair.log_prob(**data))
    assert torch.equal(loaded.sample(LABELS), posterior.pair.sample(LABELS))


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    data, method = {"x": images()}, SVI(guide="pair", steps=2)

    def gated(**more: Any) -> AutoregressiveImage:
        options = {"features": 4, "layers": 2, "kernel_size": 3} | more
        return AutoregressiveImage(GatedPixelCNN(SHAPE, **options))

    pg.fit(gated(), data, method, out=tmp_path / "run", progress=False)
    assert pg.load(tmp_path / "run", gated()).pair is not None
    with pytest.raises(LoadError, match=r"network\.features was 4, is 8; network\.layers was 2"):
        pg.load(tmp_path / "run", gated(features=8, layers=1))
    # The parameters of both are of the same shapes.
    other = AutoregressiveImage(GatedPixelCNN((4, 4), features=4, layers=2))
    with pytest.raises(LoadError, match=r"network\.image_shape was \[3, 3\], is \[4, 4\]"):
        pg.load(tmp_path / "run", other)
    with pytest.raises(LoadError, match="network was GatedPixelCNN, is MADE"):
        pg.load(tmp_path / "run", made())
    with pytest.raises(ValueError, match=r"pair 'network\.features' was 4, is 8"):
        pg.fit(gated(features=8), data, method, out=tmp_path / "run", resume=True, progress=False)


def test_a_network_of_the_users_is_passed_in(tmp_path: Path) -> None:
    pair = AutoregressiveImage(Dropping())
    posterior = pg.fit(pair, {"x": images()}, SVI(guide="pair", steps=2), progress=False)
    path = posterior.save(tmp_path / "run")
    assert pg.load(path).pair is None
    loaded = pg.load(path, AutoregressiveImage(Dropping())).pair
    assert torch.equal(params(loaded)[0], params(posterior.pair)[0])


def test_a_loaded_network_is_evaluated_as_a_fitted_one_is(tmp_path: Path) -> None:
    ours, users = made(), AutoregressiveImage(Dropping())
    for pair, given in ((ours, None), (users, users)):
        assert pair.training
        posterior = pg.fit(pair, {"x": images()}, SVI(guide="pair", steps=2), progress=False)
        path = posterior.save(tmp_path / type(pair.network).__name__)
        for found in (posterior.pair, pg.load(path, given).pair):
            assert found is not None
            assert not any(part.training for part in found.modules())


def test_arguments_of_another_version_are_told(tmp_path: Path) -> None:
    posterior = pg.fit(made(), {"x": images()}, SVI(guide="pair", steps=2), progress=False)
    path = posterior.save(tmp_path / "run")
    manifest = json.loads((path / "posterior.json").read_text())
    network = manifest["pair"]["config"]["network"]
    for name, value in (("renamed", 3), ("hidden_sizes", [0])):
        network["config"][name] = value
        (path / "posterior.json").write_text(json.dumps(manifest))
        with pytest.raises(LoadError, match=rf"a MADE cannot be made as it was saved: .*{name}"):
            pg.load(path)
        network["config"].pop("renamed", None)


def test_a_folder_names_no_class_but_ours(tmp_path: Path) -> None:
    described = describe(made(), PAIRS)
    for name in ("os", "nn.Linear", "mlp", "Path"):
        described["config"]["network"]["class"] = name
        with pytest.raises(LoadError, match="unknown class"):
            rebuild(json.loads(json.dumps(described)), PAIRS)


SCRIPT = """
    import ppl_gen as pg
    from ppl_gen.inference.training import keeper
    import sys
    sys.path.insert(0, {tests!r})
    from test_autoregressive_image import DATA, METHOD, made

    keeper._SECONDS = keeper._SHARE = 1e-9  # after every step
    pg.fit(made(num_classes=3), DATA, METHOD, out={out!r}, progress=False)
"""


class _Waiting:
    """Waits in the fifth epoch of the process that is to be killed."""

    def __call__(self, info: EpochInfo) -> None:
        if "PPL_GEN_WAIT" in os.environ and info.epoch == 5:
            print("here", flush=True)
            sys.stdin.read()

    def __repr__(self) -> str:
        return "waiting"


DATA = {
    "x": torch.from_numpy(np.random.default_rng(0).random((64, *SHAPE), dtype=np.float32)),
    "y": torch.arange(64) % 3,
}
METHOD = SVI(guide="pair", epochs=9, batch_size=20, callback=_Waiting())


def test_a_killed_training_ends_with_the_very_numbers(tmp_path: Path) -> None:
    """Killed by SIGKILL, while binary pixels are drawn anew in every step."""
    out = tmp_path / "run"
    script = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PPL_GEN_WAIT": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "here"
        process.kill()
    pair = made(num_classes=3)
    resumed = pg.fit(pair, DATA, METHOD, out=out, resume=True, progress=False)
    whole = pg.fit(pair, DATA, METHOD, progress=False)
    assert resumed.history is not None
    assert whole.history is not None
    assert torch.equal(resumed.history, whole.history)
    for one, other in zip(params(resumed.pair), params(whole.pair), strict=True):
        assert torch.equal(one, other)


def test_what_is_predicted_has_the_frequencies_of_the_classes() -> None:
    posterior = pg.fit(made(num_classes=3), DATA, METHOD, progress=False)
    pair, draws = posterior.pair, 400
    assert isinstance(pair, AutoregressiveImage)
    every = torch.cartesian_prod(*[torch.arange(2)] * 9).reshape(-1, *SHAPE)
    predicted = posterior.predict({"x": images(3), "y": torch.arange(3)}, draws=draws)["x"][0]
    assert predicted.shape == (draws, 3, *SHAPE)
    for label in range(3):
        weights = pair.log_prob(every, torch.full((512,), label)).exp()
        exact = (weights[:, None, None] * every).sum(0)
        error = (exact * (1 - exact) / draws).sqrt()
        assert bool(((predicted[:, label].double().mean(0) - exact).abs() < 5 * error).all())


def test_there_are_no_latents_to_draw() -> None:
    posterior = pg.fit(made(num_classes=3), DATA, METHOD, progress=False)
    with pytest.raises(ValueError, match=r"there are none to draw\. posterior\.predict"):
        posterior.sample()


def test_check_finds_nothing() -> None:
    assert pg.check(made(num_classes=3), {"x": images(), "y": LABELS}).problems == ()


@pytest.mark.parametrize(
    ("pair", "x", "message"),
    [
        (made(), torch.zeros(5, 4, 4), r"shape \(n, 3, 3\), got shape \(5, 4, 4\)\. Make the net"),
        (made(), torch.zeros(5, 3, 3, 3), r"got shape \(5, 3, 3, 3\)"),
        (made(), torch.zeros(3, 3), r"x\[None\]"),
        (made(), torch.zeros(5, 9), r"x\.reshape\(-1, 3, 3\)"),
        (made(), torch.zeros(0, 3, 3), "at least one"),
        (made(), torch.full((5, 3, 3), 7.0), r"between 0 and 1, got values from 7 to 7.*x / 255"),
        (made(), torch.full((5, 3, 3), 7), r"integers from 0 to 1, got values from 7 to 7"),
        (made(elements=GRAYS), torch.full((5, 3, 3), 4), "from 0 to 3, got values from 4 to 4"),
        (made(elements=GRAYS), torch.full((5, 3, 3), -1), "from 0 to 3, got values from -1 to -1"),
        (made(elements=GRAYS), torch.full((5, 3, 3), 0.5), r"got 0\.5, between.*\(x \* 3\)"),
        (made(elements=GRAYS), torch.full((5, 3, 3), 1.5), r"got 1\.5, between two of them"),
        (made(elements=GRAYS), torch.full((5, 3, 3), 3.5), r"to 3\.5\. Round and shift them"),
        (made(), torch.linspace(-1, 1, 45).reshape(5, 3, 3), r"\. Write \(x \+ 1\) / 2 for"),
        (made(), torch.full((5, 3, 3), -300.0), r"-300\. Rescale them to \[0, 1\]"),
        (
            made(elements=GRAYS),
            torch.linspace(-1, 1, 45).reshape(5, 3, 3),
            r"\(\(x \+ 1\) / 2 \* 3\)\.round\(\)\.long",
        ),
        (COLOURED, torch.zeros(5, 4, 5, 2), r"another order\. Write x\.movedim\(-1, 1\)"),
        (COLOURED, torch.zeros(5, 2, 5, 4), r"another order\. Bring its axes into that order"),
    ],
)
def test_bad_images(pair: AutoregressiveImage, x: torch.Tensor, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        pg.fit(pair, {"x": x}, SVI(guide="pair", steps=1), progress=False)
    with pytest.raises(SiteError):
        pair.log_prob(x)


def test_what_is_not_finite_is_not_scored() -> None:
    for pair in (made(), made(elements=GRAYS)):
        for value in (math.inf, math.nan):
            message = f"got values from {value} to {value}. Remove what is not finite"
            with pytest.raises(SiteError, match=message):
                pair.log_prob(torch.full((5, 3, 3), value))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda p: p.log_prob(images().numpy(), LABELS), r"ndarray\. Write torch.as_tensor\(x\)"),
        (lambda p: p.log_prob(images().tolist(), LABELS), r"list\. Write torch.as_tensor\(x\)"),
        (lambda p: p.log_prob(images() * 1j, LABELS), r"real numbers, got torch.complex64.*x.real"),
        (lambda p: p.log_prob(images(), LABELS.numpy()), r"Write torch.as_tensor\(y\)"),
        (lambda p: p.log_prob(images(), LABELS.tolist()), r"Write torch.as_tensor\(y\)"),
        (lambda p: p.log_prob(images(), F.one_hot(LABELS)), r"\(5, 3\)\. Write y.argmax\(1\)"),
        (lambda p: p.log_prob(images(), LABELS[:, None]), r"\(5, 1\)\. Write y.squeeze\(1\)"),
        (lambda p: p.sample(LABELS.numpy()), r"Write torch.as_tensor\(y\)"),
        (lambda p: p.sample(LABELS[:0]), r"shape \(0,\)\. Give the class of each"),
        (lambda p: p.sample(LABELS, given=np.zeros(SHAPE)), r"given: expected a tensor, got nda"),
        (lambda p: p.sample(LABELS, given=[[math.nan]]), "given: expected a tensor, got list"),
    ],
)
def test_what_is_no_tensor_of_the_kind_is_refused(
    use: Callable[[AutoregressiveImage], object], message: str
) -> None:
    with pytest.raises((SiteError, TypeError), match=message):
        use(made(3))


def test_arrays_are_data() -> None:
    data = {"x": images().numpy(), "y": LABELS.tolist()}
    found = pg.fit(made(3), data, SVI(guide="pair", steps=1), progress=False)
    same = {"x": images(), "y": LABELS}
    again = pg.fit(made(3), same, SVI(guide="pair", steps=1), progress=False)
    for one, other in zip(params(found.pair), params(again.pair), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("classes", "y", "message"),
    [
        (3, None, r"'y': expected integers of shape \(5,\) from 0 to 2, got NoneType"),
        (3, torch.arange(5), "classes from 0 to 2, got 0 to 4"),
        (3, torch.tensor([0, -1, 2, 1, 1]), "got -1 to 2"),
        (3, torch.zeros(5), r"float32 of shape \(5,\)\. Write y\.long"),
        (3, torch.zeros(4).long(), r"int64 of shape \(4,\)"),
        (None, LABELS, "expected none, since the pair has no classes"),
    ],
)
def test_bad_labels(classes: int | None, y: torch.Tensor | None, message: str) -> None:
    data = {"x": images()} if y is None else {"x": images(), "y": y}
    with pytest.raises(SiteError, match=message):
        pg.fit(made(classes), data, SVI(guide="pair", steps=1), progress=False)
    with pytest.raises(SiteError, match=message):
        made(classes).log_prob(images(), y)


def test_classes_out_of_range_have_no_distribution() -> None:
    for label in (torch.tensor([0, 3]), torch.tensor([[-1]]), torch.tensor(5)):
        with pytest.raises(SiteError, match="expected classes from 0 to 2"):
            made(3).distribution(label)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="expected an AutoregressiveNetwork"):
        AutoregressiveImage("made")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3,\) for 3 classes, got none"):
        AutoregressiveImage(made().network, num_classes=3)
    with pytest.raises(ValueError, match=r"no classes, got shape \(3,\)"):
        AutoregressiveImage(made(3).network)
    with pytest.raises(ValueError, match="expected one of images"):
        AutoregressiveImage(MADE((9,)))
    with pytest.raises(ValueError, match="prior_scale"):
        AutoregressiveImage(made().network, prior_scale=0.0)
    with pytest.raises(SiteError, match=r"from 0 to 2, got int\. Give the class of each"):
        made(3).sample(5)
    with pytest.raises(SiteError, match="expected none"):
        made().sample(LABELS)
    with pytest.raises(ValueError, match="rows"):
        made().sample(0)
    for wrong in (2.5, None, True):
        with pytest.raises(TypeError, match="rows"):
            made().sample(wrong)  # type: ignore[arg-type]
