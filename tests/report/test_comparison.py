"""What a user sees of a comparison: its text, its figure and its file."""

import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from ppl_gen.core import Posterior
from ppl_gen.report import Comparison, compare
from ppl_gen.report.figures import Marginal, colours, draw_marginals
from ppl_gen.report.tables import NOT_APPLICABLE, method_table, parameter_table


def posterior(
    seed: int, shift: float = 0.0, scale: float = 1.0, chains: int = 4, **options: Any
) -> Posterior:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(chains, 800 // chains, *shape, generator=generator, dtype=torch.float64)

    options.setdefault("is_mcmc", chains > 1)
    options.setdefault("provenance", {"method": "NUTS" if chains > 1 else "SVI", "seconds": 2.5})
    return Posterior(
        draws={
            "mu": 50.0 + 4.0 * (shift + scale * noise()),
            "tau": torch.exp(shift + scale * noise()),
            "weights": noise(2, 2),
        },
        latents=("mu", "tau", "weights"),
        **options,
    )


@pytest.fixture
def comparison() -> Comparison:
    wrong = posterior(1, shift=1.0, scale=0.5, chains=1, elbo=(-33.4156, 0.0123))
    return compare({"svi": wrong, "nuts": posterior(2)}, reference="nuts")


def test_reference_is_the_first_mcmc_posterior_unless_named() -> None:
    posteriors = {"svi": posterior(3, chains=1), "nuts": posterior(4), "hmc": posterior(5)}
    assert compare(posteriors).reference == "nuts"
    assert compare(posteriors, "hmc").reference == "hmc"
    assert compare({"a": posterior(6, chains=1), "b": posterior(7, chains=1)}).reference == "a"
    with pytest.raises(ValueError, match="Did you mean 'nuts'"):
        compare(posteriors, "nut")
    with pytest.raises(ValueError, match="at least one posterior"):
        compare({})


def test_printed_table(comparison: Comparison) -> None:
    text = str(comparison)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {}
    parameter = ""
    for line in lines:
        cells = re.split(r"  +", line.strip())
        if cells[0] in comparison.measurements.parameters:
            parameter, *cells = cells
        rows[parameter, cells[0]] = cells[1:]
    table = comparison.table.set_index(["parameter", "method"])
    row = table.loc[("mu", "svi")]
    mean, sd, error, ratio, *chains = rows["mu", "svi"]
    assert float(mean) == pytest.approx(row["mean"], abs=0.006)
    assert float(sd) == pytest.approx(row["sd"], abs=0.006)
    value, uncertainty = error.split(" ±")
    assert float(value) == pytest.approx(row["error_of_mean"], abs=0.006)
    assert float(uncertainty) == pytest.approx(row["error_of_mean_mcse"], abs=0.006)
    assert float(ratio) == pytest.approx(row["sd_ratio"], abs=0.006)
    assert chains == [NOT_APPLICABLE] * 4
    reference = table.loc[("weights[1, 0]", "nuts")]
    _, _, error, ratio, r_hat, bulk, tail, mcse = rows["weights[1, 0]", "nuts (ref)"]
    assert (error, ratio) == (NOT_APPLICABLE, NOT_APPLICABLE)
    assert float(r_hat) == pytest.approx(reference["r_hat"], abs=0.0006)
    assert int(bulk) == pytest.approx(reference["ess_bulk"], abs=0.6)
    assert int(tail) == pytest.approx(reference["ess_tail"], abs=0.6)
    assert float(mcse) == pytest.approx(reference["mcse"], rel=0.06)
    assert "-33.42 ±0.012" in text
    assert repr(comparison) == "Comparison of svi, nuts in 6 parameters (reference: nuts)"


def test_text_needs_no_terminal_and_no_colour(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = str(comparison)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(comparison) == plain
    assert "\x1b" not in plain


def test_long_names_and_markup_are_printed_whole() -> None:
    name = "[red]a_site_with_a_name_of_more_than_forty_characters[/red]"
    draws = Posterior(draws={name: torch.randn(4, 100, 2)}, latents=(name,))
    text = str(compare({"[bold]one_method_with_a_long_name[/bold]" * 2: draws}))
    assert max(map(len, text.splitlines())) <= 100
    # Names are folded within their column.
    heading = next(line for line in text.splitlines() if "parameter" in line)
    width = heading.index("method")
    column = "".join(line[:width].strip() for line in text.splitlines())
    assert f"{name}[0]" in column
    assert f"{name}[1]" in column


def test_many_parameters_are_cut_and_counted() -> None:
    many = Posterior(draws={"x": torch.randn(2, 50, 45)}, latents=("x",))
    text = str(compare({"a": many}))
    assert "x[39]" in text
    assert "x[40]" not in text
    assert "5 more parameters are in comparison.table." in text


def test_what_was_left_out_is_said() -> None:
    a, b = posterior(8), posterior(9)
    a.draws["extra"] = torch.zeros(4, 200)
    assert "Left out: extra (not in b)." in str(compare({"a": a, "b": b}))


def test_one_posterior_has_nothing_to_be_compared_with() -> None:
    comparison = compare({"nuts": posterior(10)})
    group = parameter_table(comparison.measurements).groups[0]
    assert group.rows[0][0] == "nuts"
    assert group.rows[0][3:5] == [NOT_APPLICABLE] * 2


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (123.456, 1.2345, ("123.46", "1.23")),
        (0.0012345, 0.0123, ("0.0012", "0.0123")),
        (123456.7, 1500.0, ("123457", "1500")),
        (1e-9, 2e-9, ("1e-09", "2e-09")),
        (3e12, 2e10, ("3e+12", "2e+10")),
        (-1e-7, 1.5, ("0.00", "1.50")),
    ],
)
def test_sensible_digits(mean: float, sd: float, expected: tuple[str, str]) -> None:
    # Two chains of draws at mean ± sd * sqrt((n - 1) / n), so that mean and sd are exact.
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(2, 50)
    draws = mean + sd * math.sqrt(199 / 200) * signs
    comparison = compare({"a": Posterior(draws={"mu": draws}, latents=("mu",))})
    assert parameter_table(comparison.measurements).groups[0].rows[0][1:3] == list(expected)


def test_missing_facts_are_blank() -> None:
    bare = Posterior(draws={"mu": torch.randn(4, 50)}, latents=("mu",))
    row = method_table(compare({"a": bare}).measurements).groups[0].rows[0]
    assert row[:5] == [NOT_APPLICABLE, "4 × 50", NOT_APPLICABLE, NOT_APPLICABLE, NOT_APPLICABLE]
    assert row[-1] == NOT_APPLICABLE


def test_notebook_gets_escaped_tables() -> None:
    hostile = '<img src=x onerror="alert(1)">'
    draws = Posterior(draws={hostile: torch.randn(4, 50)}, latents=(hostile,))
    html = compare({hostile: draws, "b": draws})._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img") >= 3
    assert html.count("<table") == 2
    assert html.count("<div") == html.count("</div>")


def test_plot_has_a_panel_for_each_parameter_and_one_legend(comparison: Comparison) -> None:
    figure = comparison.plot()
    panels = [axes for axes in figure.axes if axes.axison]
    assert [panel.get_title() for panel in panels] == list(comparison.measurements.parameters)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["nuts (reference)", "svi"]
    for panel in panels:
        assert len(panel.lines) == 2
        assert len(panel.collections) == 1  # the reference, filled
    # The lines are where the draws are: their means agree, to the width of a bin and the 0.2 % cut.
    drawn = {line.get_color(): line for line in panels[0].lines}
    for method, draws in comparison.measurements.draws("mu").items():
        line = drawn[colours(["svi", "nuts"], "nuts")[method][0]]
        x, density = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert np.average(x, weights=density) == pytest.approx(draws.mean(), abs=0.1)


def test_plot_of_chosen_parameters(comparison: Comparison) -> None:
    def titles(*names: str) -> list[str]:
        return [axes.get_title() for axes in comparison.plot(list(names)).axes if axes.axison]

    assert titles("tau") == ["tau"]
    assert titles("weights", "mu") == [
        *(f"weights[{i}, {j}]" for i in (0, 1) for j in (0, 1)),
        "mu",
    ]
    assert titles("weights[0, 1]", "weights[0, 1]") == ["weights[0, 1]"]
    with pytest.raises(ValueError, match=r"unknown parameter 'tao'.*Did you mean 'tau'"):
        comparison.plot(["tao"])
    with pytest.raises(TypeError, match="a list of names, got 'tau'"):
        comparison.plot("tau")
    with pytest.raises(ValueError, match="at least one name"):
        comparison.plot([])
    with pytest.raises(ValueError, match="max_parameters: expected at least 1, got 0"):
        comparison.plot(max_parameters=0)


def test_plot_prefers_the_parameters_that_differ(comparison: Comparison) -> None:
    figure = comparison.plot(max_parameters=2)
    # Only mu and tau were shifted and narrowed.
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["mu", "tau"]
    assert figure.get_suptitle() == "2 of 6 parameters: those that differ most"


def test_plot_leaves_matplotlib_alone(comparison: Comparison) -> None:
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    windows = plt.get_fignums()
    comparison.plot()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == windows


def test_far_away_constant_and_strangely_named_methods() -> None:
    rng = np.random.default_rng(0)
    marginal = Marginal(
        "a $b_c$ <d>",
        {
            "_far_$x": 1e6 + rng.normal(size=100),
            "constant": np.zeros(100),
            "tall": 1e-3 * rng.normal(size=100),
            "nuts": rng.normal(size=400),
        },
        "nuts",
    )
    figure = draw_marginals([marginal])
    figure.draw_without_rendering()
    (panel,) = figure.axes
    low, high = panel.get_xlim()
    assert -9.0 < low < -2.0
    assert 2.0 < high < 9.0
    assert [text.get_text() for text in panel.texts] == ["_far_$x →"]
    # The reference is not squeezed to the ground by a method that is a thousand times taller.
    filled = panel.collections[0].get_paths()[0].get_extents().height
    assert filled > 0.25 * panel.get_ylim()[1]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["nuts (reference)", "_far_$x", "constant", "tall"]


def test_everything_constant_can_be_drawn() -> None:
    draw_marginals([Marginal("x", {"a": np.ones(10)}, "a")]).draw_without_rendering()


def test_many_methods_are_told_apart() -> None:
    styles = colours([f"m{i}" for i in range(20)], "m0")
    assert len(set(styles.values())) == 20


def test_saved_page_is_whole_and_alone(comparison: Comparison, tmp_path: Path) -> None:
    path = comparison.save(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    for name in comparison.measurements.parameters:
        assert f"<figcaption>{name}</figcaption>" in text
    # Names of XML's namespaces are no addresses that a browser opens.
    assert set(re.findall(r"https?://[^\"' >]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for fetched in ("<script", '<link rel="stylesheet', "@import", "src="):
        assert fetched not in text
    assert list(tmp_path.iterdir()) == [path]
    assert text.rstrip().endswith("</html>")


def test_the_same_comparison_gives_the_same_file(comparison: Comparison, tmp_path: Path) -> None:
    first = comparison.save(tmp_path / "a.html").read_bytes()
    assert comparison.save(str(tmp_path / "b.HTM")).read_bytes() == first


def test_saved_pictures_are_limited_and_the_table_is_not(
    comparison: Comparison, tmp_path: Path
) -> None:
    text = comparison.save(tmp_path / "report.html", max_parameters=1).read_text(encoding="utf-8")
    assert text.count("<figure>") == 1
    assert "1 of 6 parameters" in text
    assert text.count('class="name"') == 6


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = '</style><script>alert("1")</script>&amp;'
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Posterior(draws={hostile: torch.randn(4, 50, generator=generator)}, latents=(hostile,))
        for _ in range(2)
    )
    a.sample_stats["diverging"] = torch.ones(4, 50, dtype=torch.bool)
    a.draws[hostile + "2"] = torch.zeros(4, 50)
    text = compare({hostile: a, "b": b}, hostile).save(tmp_path / "r.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;/style&gt;&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;amp;" in text


@pytest.mark.parametrize("name", ["report", "report.pdf", "report.html.txt", ".html"])
def test_wrong_ending(comparison: Comparison, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"ends in \.html or \.htm"):
        comparison.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_missing_or_is_the_path(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing. Make it first"):
        comparison.save(tmp_path / "missing" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        comparison.save(tmp_path / "folder.html")


def test_failed_write_keeps_the_old_file(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*report.html: No space left on device"):
        comparison.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_file_may_be_read_as_any_new_file(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    saved = comparison.save(tmp_path / "report.html")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
