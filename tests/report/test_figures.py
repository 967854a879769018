"""The figures of a comparison, one by one: what is drawn, and what the captions say of it."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ppl_gen.core import Posterior
from ppl_gen.judge.findings import Assessment
from ppl_gen.report import Comparison
from ppl_gen.report.captions import errors_in_words
from ppl_gen.report.figures import KINDS
from ppl_gen.report.figures.marginals import draw_densities
from ppl_gen.report.figures.pairs import worst_pairs
from ppl_gen.report.styles import method_styles
from ppl_gen.report.view import View

Draw = Callable[..., Posterior]
Assess = Callable[..., Assessment]


@pytest.fixture
def comparison(posterior: Draw, by_hand: Assess) -> Comparison:
    wrong = posterior(1, shift=1.0, scale=0.5, chains=1)
    return Comparison(by_hand({"svi": wrong, "nuts": posterior(2)}, "nuts"))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.axison]


def test_marginals_have_a_panel_for_each_parameter_and_one_legend(comparison: Comparison) -> None:
    figure = comparison.plot()
    panels = [axes for axes in figure.axes if axes.axison]
    # Only mu and tau were shifted and narrowed.
    assert titles(figure)[:2] in (["mu", "tau"], ["tau", "mu"])
    assert sorted(titles(figure)) == sorted(comparison.assessment.measurements.parameters)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["nuts (reference)", "svi"]
    for panel in panels:
        assert len(panel.lines) == 2
        assert len(panel.collections) == 1  # the reference, filled
    # The lines are where the draws are: their means agree, to the width of a bin and the 0.2 % cut.
    drawn = {line.get_color(): line for line in panels[titles(figure).index("mu")].lines}
    for method, draws in comparison.assessment.measurements.draws("mu").items():
        line = drawn[method_styles(["svi", "nuts"], "nuts")[method].colour]
        x, density = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert np.average(x, weights=density) == pytest.approx(draws.mean(), abs=0.1)


def test_chosen_parameters(comparison: Comparison) -> None:
    def chosen(*names: str) -> list[str]:
        return titles(comparison.plot(parameters=list(names)))

    assert chosen("tau") == ["tau"]
    assert chosen("weights", "mu") == [
        *(f"weights[{i}, {j}]" for i in (0, 1) for j in (0, 1)),
        "mu",
    ]
    assert chosen("weights[0, 1]", "weights[0, 1]") == ["weights[0, 1]"]
    with pytest.raises(ValueError, match=r"unknown parameter 'tao'.*Did you mean 'tau'"):
        chosen("tao")
    with pytest.raises(TypeError, match="a list of names, got 'tau'"):
        comparison.plot(parameters="tau")
    with pytest.raises(ValueError, match="at least one name"):
        comparison.plot(parameters=[])
    with pytest.raises(ValueError, match="max_parameters: expected at least 1, got 0"):
        comparison.plot(max_parameters=0)
    with pytest.raises(TypeError, match=r"plot\(parameters="):
        comparison.plot(["tau"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown kind 'forrest'.*Did you mean 'forest'"):
        comparison.plot("forrest")


def test_parameters_that_differ_are_preferred(comparison: Comparison) -> None:
    figure = comparison.plot(max_parameters=2)
    assert sorted(titles(figure)) == ["mu", "tau"]
    assert figure.get_suptitle() == "2 of 6 parameters: those that differ most"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_drawn_and_leaves_matplotlib_alone(
    comparison: Comparison, kind: str
) -> None:
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    windows = plt.get_fignums()
    figure = comparison.plot(kind)
    figure.draw_without_rendering()
    assert titles(figure)
    assert any(axes.has_data() for axes in figure.axes)
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == windows


@pytest.mark.parametrize("kind", ["ecdf", "weights", "elbo", "predictive", "loo_pit", "energy"])
def test_what_cannot_be_drawn_is_refused_with_the_reason(
    posterior: Draw, by_hand: Assess, kind: str
) -> None:
    bare = replace(by_hand({"a": posterior(3)}, None), fits={}, sample_stats={})
    with pytest.raises(ValueError, match=f"'{kind}': there is nothing to draw. It needs a? ?"):
        Comparison(bare).plot(kind)


def test_far_away_constant_and_strangely_named_methods() -> None:
    rng = np.random.default_rng(0)
    draws = {
        "_far_$x": 1e6 + rng.normal(size=100),
        "constant": np.zeros(100),
        "tall": 1e-3 * rng.normal(size=100),
        "nuts": rng.normal(size=400),
    }
    panel = Figure().subplots()
    draw_densities(draws, "nuts", method_styles(draws, "nuts"), panel, "black")
    low, high = panel.get_xlim()
    assert -9.0 < low < -2.0
    assert 2.0 < high < 9.0
    assert [text.get_text() for text in panel.texts] == ["_far_$x →"]
    # The reference is not squeezed to the ground by a method that is a thousand times taller.
    filled = panel.collections[0].get_paths()[0].get_extents().height
    assert filled > 0.25 * panel.get_ylim()[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference", ["b_$x", None])
def test_constant_draws_single_draws_and_strange_names_can_be_drawn(
    by_hand: Assess, kind: str, reference: str | None
) -> None:
    constant = {"m_$a$": torch.ones(2, 30), "other": torch.zeros(2, 30, 1)}
    posteriors = {
        "_a": Posterior(draws=constant, latents=tuple(constant), is_mcmc=False),
        "b_$x": Posterior(draws=dict(constant), latents=tuple(constant)),
    }
    comparison = Comparison(by_hand(posteriors, reference))
    try:
        figure = comparison.plot(kind)
    except ValueError as error:
        assert "there is nothing to draw" in str(error)  # noqa: PT017
    else:
        figure.draw_without_rendering()


def test_many_methods_are_told_apart() -> None:
    styles = method_styles([f"m{i}" for i in range(25)], "m0")
    assert len(set(styles.values())) == 25
    drawn = list(styles.values())[1:]
    assert all(a.colour != b.colour and a.line != b.line for a, b in pairwise(drawn))


def test_caption_of_marginals_names_sizes_and_who_is_right(assessment: Assessment) -> None:
    caption = errors_in_words(View(assessment), "mu")
    # 800 draws of a scale of a half: 50 % to within 2.5 % (one standard error of an sd).
    mean_field = caption.split(";")[0]
    size = float(mean_field.split("sd ")[-1].split(" %")[0])
    assert mean_field.startswith("mean-field: mean ")
    assert "sd too large" in mean_field
    assert abs(size - 50.0) < 4 * 2.5
    assert "full-rank" in caption
    assert caption.endswith("with nuts.")


def test_ecdf_is_below_the_reference_where_draws_are_too_high(comparison: Comparison) -> None:
    figure = comparison.plot("ecdf", parameters=["mu", "weights[0, 0]"])
    wrong, right = figure.axes[:2]
    curve = next(line for line in wrong.lines if len(np.asarray(line.get_ydata())) > 2)
    # N(1, 0.5) for N(0, 1): the difference is smallest where the densities cross, at x = 0.39:
    # Phi(-1.22) - Phi(0.39) = -0.54; 800 draws of each err by 0.02 (one standard error).
    assert np.min(np.asarray(curve.get_ydata())) == pytest.approx(-0.54, abs=0.08)
    band = wrong.collections[0].get_paths()[0].get_extents()
    assert 0.02 < band.ymax < 0.12
    inside = next(line for line in right.lines if len(np.asarray(line.get_ydata())) > 2)
    assert np.abs(np.asarray(inside.get_ydata())).max() < band.ymax
    view = View(comparison.assessment)
    (caption,) = (panel.caption for panel in KINDS["ecdf"].panels(view, ["mu"]))
    # Phi(-1.24) of its draws, where Phi(0.38) of the reference's are.
    share, point = map(float, re.findall(r"(\d+) %", caption))
    assert share == pytest.approx(10.8, abs=6.0)
    assert point == pytest.approx(64.8, abs=6.0)
    (caption,) = (panel.caption for panel in KINDS["ecdf"].panels(view, ["weights[0, 0]"]))
    assert caption == "svi stays in the band."


def test_pairs_whose_correlation_is_missed_come_first(by_hand: Assess) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 500, 3, generator=generator)
    joint = noise[0].clone()
    joint[..., 2] = 0.9 * joint[..., 0] + 0.19**0.5 * joint[..., 2]
    view = View(
        by_hand(
            {
                "independent": Posterior(draws={"x": noise[1]}, latents=("x",)),
                "joint": Posterior(draws={"x": joint}, latents=("x",)),
            },
            "joint",
        )
    )
    assert set(worst_pairs(view)[0]) == {"x[0]", "x[2]"}
    caption = KINDS["pairs"].panels(view, None)[0].caption
    # The standard error of a correlation of 2,000 draws is at most 0.022.
    assert "+0.90 by joint" in caption or "+0.9" in caption
    assert "independent" in caption


def test_ranks_show_the_chain_that_is_apart(posterior: Draw, by_hand: Assess) -> None:
    apart = posterior(1, draws=4000)
    apart.draws["tau"][2] *= 10.0
    view = View(by_hand({"nuts": apart, "hmc": posterior(2, draws=4000)}, "hmc"))
    panels = {panel.title: panel for panel in KINDS["ranks"].panels(view, None)}
    caption = panels["nuts: tau"].caption
    assert "chain 2" in caption
    assert "highest ranks" in caption


def test_weight_tails_say_which_side_of_the_threshold(assessment: Assessment) -> None:
    (panel,) = KINDS["weights"].panels(View(assessment), None)
    found = assessment.weights["mean-field"]
    assert f"mean-field: k-hat {found.pareto_k:.2f}" in panel.caption
    side = "below" if found.pareto_k < found.threshold else "above"
    assert f"{side} the threshold" in panel.caption
    equal = replace(found, pareto_k=-np.inf, interval=(-np.inf, -np.inf))
    exact = replace(assessment, weights={"guide": equal})
    (panel,) = KINDS["weights"].panels(View(exact), None)
    assert "all of the largest weights are equal" in panel.caption
    assert "inf" not in panel.caption


def test_loo_pit_names_the_fault_of_the_model(assessment: Assessment) -> None:
    (panel,) = KINDS["loo_pit"].panels(View(assessment), None)
    assert "evenly" in panel.caption
    rng = np.random.default_rng(0)
    fit = replace(assessment.fits["nuts"], loo_pit={"y": rng.beta(4.0, 4.0, size=400)})
    (panel,) = KINDS["loo_pit"].panels(View(replace(assessment, fits={"nuts": fit})), None)
    assert "too wide" in panel.caption
    fit = replace(fit, loo_pit={"y": rng.beta(3.0, 1.0, size=400)})
    (panel,) = KINDS["loo_pit"].panels(View(replace(assessment, fits={"nuts": fit})), None)
    assert "too low" in panel.caption


def test_predictive_check_names_what_the_model_misses(assessment: Assessment) -> None:
    captions = [panel.caption for panel in KINDS["predictive"].panels(View(assessment), None)]
    assert all("sd (p = 0.99)" in caption for caption in captions)
    counts = np.random.default_rng(0).integers(0, 2, size=(20, 60)).astype(float)
    fit = replace(
        assessment.fits["nuts"],
        replicated={"y": counts},
        observed={"y": counts[0]},
        p_values={"y": {"mean": 0.5}},
    )
    comparison = Comparison(replace(assessment, fits={"nuts": fit}))
    figure = comparison.plot("predictive")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0", "1"]


def test_energy_says_whether_tails_are_reached(assessment: Assessment) -> None:
    rng = np.random.default_rng(0)
    # A random walk in the energy: the changes are much narrower than the whole.
    walk = np.cumsum(rng.normal(size=(4, 1000)), axis=1)
    slow = replace(assessment, sample_stats={"nuts": {"energy": walk}})
    (panel,) = KINDS["energy"].panels(View(slow), None)
    assert "too seldom" in panel.caption
    (panel, *_) = KINDS["energy"].panels(View(assessment), None)
    assert "wide enough" in panel.caption


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([31.25], "One value was kept, -31.25 nats: it shows no course."),
        (
            [40.0, 31.25],
            "Two values were kept: -40 nats at the first, -31.25 at the last. They show no course.",
        ),
        (
            [40.0, np.inf, 31.5, 31.25],
            "3 values were kept: -40 nats at the first, -31.25 at the last, -31.5 at the one "
            "before; 1 value not finite.",
        ),
        ([40.0] * 10 + [31.0] * 10, "20 steps; -31 nats on average over the last tenth, 0 more"),
    ],
)
def test_course_of_an_optimisation_claims_no_more_than_was_kept(
    assessment: Assessment, history: list[float], expected: str
) -> None:
    kept = replace(assessment, histories={"full-rank": np.array(history)})
    (panel,) = KINDS["elbo"].panels(View(kept), None)
    assert panel.caption.startswith(expected)
    Comparison(kept).plot("elbo").draw_without_rendering()


def test_legends_name_what_is_drawn(assessment: Assessment) -> None:
    comparison = Comparison(assessment)

    def named(kind: str) -> list[str]:
        (legend,) = comparison.plot(kind).legends
        return [text.get_text() for text in legend.get_texts()]

    others = ["mean-field", "full-rank", "flow"]
    # Chains have no weights, and are the zero line of differences from them.
    assert named("weights") == others
    assert named("ecdf") == [*others, "hmc"]
    assert named("forest") == ["nuts (reference)", *others, "hmc"]
    assert named("energy") == ["nuts (reference)", "hmc"]
