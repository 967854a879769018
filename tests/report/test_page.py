"""The saved page: whole, alone, escaped, the same each time, and small."""

import base64
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
import torch

from ppl_gen.core import Posterior
from ppl_gen.judge.findings import Assessment, Judgement, Verdict
from ppl_gen.judge.repair import Repair, Rung
from ppl_gen.report import Comparison

Draw = Callable[..., Posterior]
Assess = Callable[..., Assessment]


class Outline(HTMLParser):
    """Reads headings, links and elements, and whether every element is closed."""

    VOID = ("meta", "link", "br", "img", "path", "circle", "use", "rect", "stop")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.headers: list[dict[str, str | None]] = []
        self.pictures: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(named)
        self.ids += [named["id"]] if named.get("id") else []
        self.targets += re.findall(
            r"#([\w.-]+)", named.get("href") or named.get("xlink:href") or ""
        )
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "th":
            self.headers.append(named)
        if named.get("role") == "img":
            self.pictures.append(named["aria-label"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def plain(text: str) -> str:
    """The text of a piece of HTML, with plain spaces and minus signs."""
    words = html.unescape(re.sub(r"<[^>]*>", "", text))
    return words.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def embedded(text: str) -> object:
    (encoded,) = re.findall(r'href="data:application/json;base64,([A-Za-z0-9+/=]+)"', text)
    return json.loads(base64.b64decode(encoded))


@pytest.fixture(scope="module")
def page(assessment: Assessment, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return Comparison(assessment).save(path, progress=False).read_text("utf-8")


def test_page_is_whole_and_alone(page: str) -> None:
    # Names of XML's namespaces are no addresses that a browser opens.
    assert set(re.findall(r"https?://[^\"' >]*", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    outline = Outline(page)
    assert not outline.tags & {"script", "img", "iframe", "object", "embed", "form"}
    assert "@import" not in page
    assert not [name for name in outline.attributes if name.startswith("on") or name == "src"]
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")


def test_page_is_well_formed_and_says_what_is_what(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.targets) <= set(outline.ids)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    pairs = zip(outline.headings, outline.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in pairs)
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in outline.headers)
    assert {"header", "nav", "main", "footer"} <= outline.tags


def test_sections_are_in_order(page: str) -> None:
    names = [
        "verdicts",
        "gates",
        "methods",
        "parameters",
        "figures",
        "limits",
        "glossary",
        "provenance",
    ]
    places = [page.index(f'<section id="{name}"') for name in names]
    assert places == sorted(places)
    assert 'id="repair"' not in page


def test_cards_hold_sentence_action_caveat_and_further_reasons(
    page: str, assessment: Assessment
) -> None:
    cards = re.findall(r"<article.*?</article>", page, flags=re.DOTALL)
    assert len(cards) == 5
    for card, (name, judgement) in zip(cards, assessment.judgements.items(), strict=True):
        text = plain(card)
        for part in (name, judgement.verdict.value, judgement.sentence, judgement.action):
            assert part in text
        assert all(caveat in text for caveat in judgement.caveats)
        # A reason that the sentence names is not said twice.
        assert text.count(judgement.sentence) == 1
        assert all(text.count(reason.sentence) == 1 for reason in judgement.reasons)


def test_gates_with_one_answer_are_one_row(page: str) -> None:
    (section,) = re.findall(r'<section id="gates".*?</section>', page, flags=re.DOTALL)
    rows = [plain(row).split() for row in re.findall(r"<tr.*?</tr>", section, flags=re.DOTALL)]
    ended = "Did the optimisation end? yes The ELBO rose by 0.01 at the end."
    assert f"mean-field, full-rank and flow {ended}" in [" ".join(row) for row in rows]
    assert sum("end?" in row for row in rows) == 1


def test_every_picture_says_what_is_seen(page: str) -> None:
    outline = Outline(page)
    alternatives = outline.pictures
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL)
    assert len(alternatives) == len(captions) > 20
    for alternative, caption in zip(alternatives, captions, strict=True):
        assert plain(caption) in plain(alternative)
        assert len(alternative) > len(plain(caption)) + 10
    assert not re.search(r"\b(nan|inf)\b", " ".join(outline.words + alternatives))


def test_embedded_json_is_the_dictionary(page: str, assessment: Assessment) -> None:
    assert embedded(page) == Comparison(assessment).to_dict()


def test_same_input_gives_the_same_bytes(posterior: Draw, by_hand: Assess, tmp_path: Path) -> None:
    def save(name: str) -> bytes:
        posteriors = {"svi": posterior(1, 1.0, chains=1), "nuts": posterior(2)}
        comparison = Comparison(by_hand(posteriors, "nuts"))
        return comparison.save(tmp_path / name, progress=False).read_bytes()

    plain = save("a.html")
    assert save("b.HTM") == plain
    with matplotlib.rc_context({"axes.grid": True, "font.size": 20, "text.usetex": True}):
        assert save("c.html") == plain


def test_names_of_any_letters_and_of_none(by_hand: Assess, tmp_path: Path) -> None:
    name = "模型\x00θ"
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Posterior(draws={name: torch.randn(4, 50, generator=generator)}, latents=(name,))
        for _ in range(2)
    )
    comparison = Comparison(by_hand({"a": a, "b": b}, "a"))
    text = comparison.save(tmp_path / "r.html", progress=False).read_text("utf-8")
    assert "\x00" not in text
    assert "模型\N{REPLACEMENT CHARACTER}θ" in text


def test_hostile_names_are_text(by_hand: Assess, tmp_path: Path) -> None:
    hostile = '</style><script>alert("1")</script>&amp;{{ 7 * 7 }}'
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Posterior(
            draws={hostile: torch.randn(4, 50, 2, generator=generator)},
            latents=(hostile,),
            provenance={hostile: hostile, "method": hostile},
        )
        for _ in range(2)
    )
    a.draws[hostile + "2"] = torch.zeros(4, 50)
    assessment = by_hand({hostile: a, "b": b}, hostile)
    judgement = Judgement(hostile, Verdict.DO_NOT_TRUST, hostile, (), hostile, (hostile,))
    fits = {
        hostile: replace(assessment.fits["b"], loo_pit={hostile: assessment.fits["b"].loo_pit["y"]})
    }
    assessment = replace(
        assessment,
        judgements={hostile: judgement, "b": assessment.judgements["b"]},
        warnings={hostile: (hostile,)},
        not_checked=(hostile,),
        fits=fits,
        sample_stats={hostile: assessment.sample_stats["b"]},
    )
    comparison = Comparison(assessment)
    text = comparison.save(tmp_path / "r.html", progress=False).read_text("utf-8")
    assert "<script" not in text
    # Those that the page has itself: one of its own, and one in each picture.
    assert text.count("</style>") == text.count("<style") == 1 + len(Outline(text).pictures)
    assert "&lt;/style&gt;&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;amp;" in text
    assert Outline(text).open == []
    assert embedded(text) == comparison.to_dict()


def test_five_methods_of_two_hundred_parameters_are_at_most_two_megabytes(
    posterior: Draw, by_hand: Assess, tmp_path: Path
) -> None:
    shapes = {"mu": (), "tau": (), "x": (198,)}
    posteriors = {
        f"method {i}": posterior(i, 0.2 * i, chains=4, draws=4000, shapes=shapes, is_mcmc=i > 2)
        for i in range(5)
    }
    comparison = Comparison(by_hand(posteriors, "method 4"))
    text = comparison.save(tmp_path / "report.html", progress=False).read_text("utf-8")
    assert len(text.encode()) <= 2_000_000
    # The worst parameters are shown, the others counted and in the JSON.
    shown = re.findall(r'scope="rowgroup" colspan="10">([^<]*)<', text)
    assert {"mu", "tau"} == set(shown[:2])
    assert f"{200 - len(shown)} more parameters" in text
    assert embedded(text) == comparison.to_dict()


def test_a_hundred_thousand_parameters_make_a_small_page(by_hand: Assess, tmp_path: Path) -> None:
    draws = torch.randn(2, 1, 20, 100_000, generator=torch.Generator().manual_seed(0))
    posteriors = {
        name: Posterior(draws={"x": values}, latents=("x",), is_mcmc=False)
        for name, values in zip(("svi", "exact"), draws, strict=True)
    }
    comparison = Comparison(by_hand(posteriors, "exact"))
    text = comparison.save(tmp_path / "report.html", progress=False).read_text("utf-8")
    assert len(text.encode()) <= 1_000_000
    assert "100,000 parameters" in text
    assert 'comparison.save("report.json")' in text
    assert "data:application/json" not in text


def test_one_parameter_no_reference_no_weights_no_fits_nothing_judged(
    posterior: Draw, by_hand: Assess, tmp_path: Path
) -> None:
    bare = Posterior(
        draws={"mu": torch.randn(1, 50, generator=torch.Generator().manual_seed(0))},
        latents=("mu",),
        is_mcmc=False,
    )
    assessment = by_hand({"svi": bare}, None)
    judgement = Judgement("svi", Verdict.CANNOT_JUDGE, "There are too few draws.")
    assessment = replace(
        assessment,
        judgements={"svi": judgement},
        gates=(),
        weights={},
        fits={},
        histories={},
        warnings={},
        not_checked=(),
        provenance={},
    )
    text = Comparison(assessment).save(tmp_path / "r.html", progress=False).read_text("utf-8")
    assert Outline(text).open == []
    assert "CANNOT JUDGE" in text
    assert "1 posterior, 1 parameter, judged without a reference" in text
    assert "svi cannot be judged." in text


def test_repair_is_told_step_by_step(assessment: Assessment, tmp_path: Path) -> None:
    bad = assessment.judgements["mean-field"]
    good = Judgement("full rank", Verdict.TRUST, "All errors are within 0.1 sd and 10 %.")
    rungs = (
        Rung("optimise longer", "longer = ...", 1.25, bad, False),
        Rung("non-centre", "", 0.0, None, False, "the pair has no hierarchy"),
        Rung(
            "full rank", 'posterior = pg.fit(pair, data, SVI(guide="full_rank"))', 2.0, good, True
        ),
    )
    repair = Repair(
        posterior=Posterior(draws={}, latents=()),
        before=bad,
        after=good,
        rungs=rungs,
        reason="A posterior can be trusted.",
        seconds=3.25,
    )
    path = tmp_path / "report.html"
    text = Comparison(assessment).save(path, repair=repair, progress=False).read_text("utf-8")
    (section,) = re.findall(r'<section id="repair".*?</section>', text, flags=re.DOTALL)
    plain = html.unescape(re.sub(r"<[^>]*>", " ", section))
    parts = ["before", "after", repair.reason, "3.2 seconds", rungs[1].note]
    for rung in rungs:
        parts += [rung.name, rung.action]
        parts += [rung.judgement.verdict.value, rung.judgement.sentence] if rung.judgement else []
    for part in parts:
        assert part in plain
    places = [text.index(f'id="{name}"') for name in ("figures", "repair", "limits")]
    assert places == sorted(places)
    assert Outline(text).open == []
