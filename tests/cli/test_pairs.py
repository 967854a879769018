"""Which pair the argument MODEL names."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppl_gen as pg
from ppl_gen import models
from ppl_gen.cli.pairs import built_in_models, find_model
from ppl_gen.distributions import Elements
from ppl_gen.inference import SVI
from ppl_gen.models import (
    AutoregressiveImage,
    BayesianLastLayer,
    BayesianLinearRegression,
    EightSchools,
)
from ppl_gen.models.networks import MADE, GatedPixelCNN


def test_every_built_in_pair_has_a_name_and_can_be_made() -> None:
    found = built_in_models()
    assert {model.source for model in found.values()} == {
        getattr(models, name) for name in models.__all__
    }
    assert "eight_schools" in found
    assert "semi_supervised_vae" in found


@pytest.mark.parametrize("name", ["eight_schools", "EightSchools"])
def test_built_in_pairs_go_by_their_name(name: str) -> None:
    model = find_model(name)
    pair = model.make({"centered": True}, {})
    assert isinstance(pair, EightSchools)
    assert pair.centered
    own = model.own_data()
    assert own is not None
    assert set(own) == {"sigma", "y"}


def test_arguments_of_built_in_pairs_follow_from_the_data() -> None:
    data = {"x": np.zeros((5, 3)), "y": np.zeros(5)}
    pair = find_model("bayesian_linear_regression").make({}, data)
    assert isinstance(pair, BayesianLinearRegression)
    assert pair.num_features == 3
    assert find_model("bayesian_linear_regression").own_data() is None
    # What is given goes before what the data say.
    given = find_model("bayesian_linear_regression").make({"num_features": 2}, data)
    assert given.num_features == 2
    with pytest.raises(ValueError, match="lacks its argument 'num_features': give it by --arg"):
        find_model("bayesian_linear_regression").make({}, {"x": np.zeros(5)})
    small = find_model("vae").make({"hidden_sizes": (4,)}, {"x": np.zeros((5, 8, 6))})
    assert small.image_shape == (8, 6)


def test_networks_are_made_by_their_class_and_the_data() -> None:
    given = {
        "network": "GatedPixelCNN",
        "network.features": 4,
        "network.layers": 2,
        "network.elements": "categorical",
        "network.elements.categories": 5,
        "network.context_size": 3,
        "num_classes": 3,
    }
    first, again, other = (
        find_model("autoregressive_image").make(given, {"x": np.zeros((2, 3, 4))}, seed)
        for seed in (1, 1, 2)
    )
    network = first.network
    assert isinstance(network, GatedPixelCNN)
    assert network.event_shape == (3, 4)
    assert (network.features, network.layers, network.context_size) == (4, 2, 3)
    assert network.elements == Elements("categorical", 5)
    weights = [pair.network.last.weight for pair in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    sound = {"network": "WaveNet", "network.layers": 2}
    pair = find_model("autoregressive_audio").make(sound, {"x": np.zeros((2, 30))})
    assert pair.network.event_shape == (30,)
    vae = find_model("pixel_vae").make({"elements.components": 2}, {"x": np.zeros((2, 8, 9))})
    assert (vae.elements, vae.image_shape) == (Elements(components=2), (8, 9))


def test_what_is_not_said_of_elements_is_as_by_default() -> None:
    given = {"network": "PixelCNNPlusPlus", "network.elements.components": 2}
    pair = find_model("autoregressive_image").make(given, {"x": np.zeros((2, 8, 8))})
    assert pair.network.elements == Elements("logistic_mixture", components=2)
    sound = {"network": "WaveNet", "network.elements.categories": 16}
    pair = find_model("autoregressive_audio").make(sound, {"x": np.zeros((2, 30))})
    assert pair.network.elements == Elements("categorical", 16)


def test_networks_of_pairs_from_files_are_made_whether_annotations_are_postponed_or_not(
    tmp_path: Path,
) -> None:
    lines = (
        "from ppl_gen.distributions import AutoregressiveNetwork",
        "class Own:",
        "    def __init__(self, network: AutoregressiveNetwork) -> None:",
        "        self.network = network",
        "    def model(self, x): ...",
    )
    given = {"network": "MADE", "network.event_shape": (2, 2)}
    for name, first in {"now": "", "later": "from __future__ import annotations"}.items():
        file = tmp_path / f"{name}.py"
        file.write_text("\n".join((first, *lines)))
        assert isinstance(find_model(f"{file}:Own").make(given, {}).network, MADE)


class _Own(AutoregressiveImage):
    """A pair that is not built in."""


def test_a_trained_pair_is_that_of_a_run(tmp_path: Path) -> None:
    pair = AutoregressiveImage(MADE((2, 2), (4,)))
    method = SVI(guide="pair", steps=1)
    posterior = pg.fit(pair, {"x": torch.zeros(3, 2, 2)}, method, progress=False)
    folder = posterior.save(tmp_path / "run")
    made = find_model("bayesian_last_layer").make({"likelihood": str(folder), "scale": 2.0}, {})
    assert isinstance(made, BayesianLastLayer)
    for name, value in posterior.pair.state_dict().items():
        assert torch.equal(made.likelihood.state_dict()[name], value)
    own = pg.fit(_Own(MADE((2, 2), (4,))), {"x": torch.zeros(3, 2, 2)}, method, progress=False)
    folder_of_own = own.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"--arg likelihood=.*got one of a pair from a file"):
        find_model("bayesian_last_layer").make({"likelihood": str(folder_of_own)}, {})
    nested = {"likelihood": str(folder), "likelihood.network": "MADE"}
    with pytest.raises(TypeError, match=r"likelihood\.network: likelihood has no arguments"):
        find_model("bayesian_last_layer").make(nested, {})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("autoregressive_image", {}, r"lacks its argument 'network'.*network=CLASS, such as Gated"),
        ("autoregressive_image", {"network": "Gated"}, r"unknown network 'Gated'.*'GatedPixelCNN'"),
        ("autoregressive_image", {"network": "mlp"}, "unknown network 'mlp'"),
        ("autoregressive_image", {"network": 3}, "unknown network 3"),
        (
            "autoregressive_image",
            {"network": "MADE", "network.hidden": (4,)},
            "unknown argument of MADE 'hidden'.*'hidden_sizes'",
        ),
        (
            "autoregressive_image",
            {"network": "MADE"},
            r"MADE lacks its argument 'network\.event_shape': give it by --arg network\.event",
        ),
        (
            "autoregressive_image",
            {"network": "MADE", "network.event_shape": (2, 2), "network.elements": "binary"},
            "unknown likelihood 'binary'",
        ),
        ("bayesian_last_layer", {}, r"'likelihood'.*likelihood=RUN, the folder of its fit"),
        ("eight_schools", {"centered.x": 3}, r"centered\.x: centered has no arguments of its own"),
    ],
)
def test_what_makes_no_object_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        find_model(name).make(given, {})


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown argument of EightSchools 'centred'.*'centered'"):
        find_model("eight_schools").make({"centred": True}, {})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'eight_school'.*'eight_schools'.*FILE.py"):
        find_model("eight_school")


def test_whatever_a_file_has_can_be_a_pair(folder: Path) -> None:
    file = folder / "pairs.py"
    line = find_model(f"{file}:Line").make({"slope_scale": 2.0}, {})
    assert line.slope_scale == 2.0
    assert callable(find_model(f"{file}:model").make({}, {}))
    assert len(find_model(f"{file}:both").make({}, {})) == 2
    assert find_model(f"{file}:made").make({}, {}).slope_scale == 2.0
    assert find_model(f"{file}:made").own_data() is None


def test_first_weights_follow_the_seed(folder: Path) -> None:
    weights = [
        find_model(f"{folder / 'pairs.py'}:Network", seed)
        .make({"size": 3}, {}, seed)
        .weights.weight.detach()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_user_pairs_get_no_guessed_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match="lacks its argument 'size'"):
        find_model(f"{folder / 'pairs.py'}:Network").make({}, {"x": np.zeros((5, 3))})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":Lin", r"no 'Lin' in it.*pairs\.py:Line.*Did you mean 'Line'"),
        ("", r"no name after it.*pairs\.py:Line.*pairs\.py:both"),
        (":number", "expected a class or function.*got int"),
        (":SCALE", "expected a class or function.*got float"),
    ],
)
def test_what_a_file_does_not_have_is_refused(name: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        find_model(f"{folder / 'pairs.py'}{name}")
    # What the file has imported is not offered.
    assert "pairs.py:dist" not in str(error.value)


def test_arguments_without_a_constructor_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="is no class, and takes no arguments"):
        find_model(f"{folder / 'pairs.py'}:model").make({"a": 1}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "import there_is_none",
            r"ModuleNotFoundError: No module named 'there_is_none' \(line 1\)",
        ),
        ("x = 1\ny = x / 0\n", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("def f(:\n", r"invalid syntax.*line 1"),
        ("import sys\nsys.exit(3)\n", "it ends the program"),
    ],
)
def test_a_file_that_fails_is_named_with_the_line(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"failing\.py cannot be run: {message}"):
        find_model(f"{tmp_path / 'failing.py'}:Line")
    assert not [name for name in sys.modules if "failing" in name]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there\.py: no such file"):
        find_model(f"{tmp_path / 'there.py'}:Line")


def test_a_file_never_takes_the_place_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def model():\n    pass\n", encoding="utf-8")
    before = sys.modules["json"]
    assert callable(find_model(f"{tmp_path / 'json.py'}:model").make({}, {}))
    assert sys.modules["json"] is before
