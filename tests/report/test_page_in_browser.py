"""The page of a comparison, opened in a real browser."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_gen.core import Posterior
from ppl_gen.judge.findings import Assessment
from ppl_gen.judge.repair import Repair, Rung
from ppl_gen.report import Comparison

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, which is not installed")

# The protocol has its ends at the descriptors 3 and 4, which may be taken by either pipe already.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Page:
    """A page in headless Chromium, spoken to by the DevTools protocol over a pair of pipes."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        pipes, folder = (str(to_browser), str(from_browser)), f"--user-data-dir={profile}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *pipes, BROWSER, *OPTIONS, folder, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._count = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None

    def attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._write, text) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        while not any(known.get("method") == event for known in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 65536)
            assert chunk, "the browser went away"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("profile"))
    try:
        page.attach()
        yield page
    finally:
        page.close()


@pytest.fixture(scope="session")
def axe(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, which knows the rules of accessibility, from the npm registry."""
    installed = root / "node_modules" / "axe-core" / "axe.min.js"
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, to get axe-core, which is not installed")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "pack", "axe-core@4", "--silent", "--prefer-offline"]
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=90, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"needs axe-core, which npm cannot get: {error}")
    (packed,) = folder.glob("axe-core-*.tgz")
    with tarfile.open(packed) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode("utf-8")


@pytest.fixture(scope="module")
def report(by_hand: Callable[..., Assessment], tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)

    def posterior(chains: int, scale: float) -> Posterior:
        return Posterior(
            draws={
                "mu": scale * torch.randn(chains, 200, generator=generator),
                "<script>alert(1)</script>&a_quite_long_name_of_a_site": torch.randn(
                    chains, 200, 2, 3, generator=generator
                ),
                "tiny": 1e-9 * torch.randn(chains, 200, generator=generator) - 123456.0,
            },
            latents=("mu",),
            is_mcmc=chains > 1,
            elbo=None if chains > 1 else (-12345.678, 0.012),
            sample_stats={"diverging": torch.ones(chains, 200, dtype=torch.bool)},
            provenance={"method": "NUTS", "seconds": 1234.5, "gradient_evaluations": 12_345_678},
        )

    posteriors = {
        "mean-field <b>": posterior(1, 0.5),
        "a_method_with_a_long_name_and_no_space_in_it": posterior(2, 1.0),
        "nuts": posterior(4, 1.0),
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    assessment = by_hand(posteriors, "nuts")
    bad, good = (assessment.judgements[name] for name in ("mean-field <b>", "nuts"))
    rungs = (
        Rung("optimise longer", f"posterior = {'a_long_line_of_code' * 5}", 1.0, bad, False),
        Rung("non-centre", "", 0.0, None, False, "there is no hierarchy"),
        Rung("plain NUTS", "nuts = ...", 1.0, good, True),
    )
    repair = Repair(posteriors["nuts"], bad, good, rungs, "It can be trusted.", 2.0)
    return Comparison(assessment).save(path, repair=repair, progress=False)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 735, 740, 1000, 1280])
def test_page_is_quiet_alone_and_fits(page: Page, report: Path, width: int, dark: bool) -> None:
    page.open(report, width, dark)
    complaints = [
        event
        for event in page.events
        if event.get("method")
        in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    ]
    assert complaints == []
    requests = [
        event["params"]["request"]["url"]
        for event in page.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # No element hides a part of itself beyond its own edge either.
    hidden = page.evaluate(
        "[...document.querySelectorAll('td, tbody th, figcaption, li, p, dd, dt, code, h3')]"
        ".filter(e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.textContent)"
    )
    assert hidden == []


def test_names_are_text_and_pictures_are_there(page: Page, report: Path) -> None:
    page.open(report, 1280)
    assert page.evaluate("document.querySelectorAll('script, main b b, h3 b').length") == 0
    assert "<script>alert(1)</script>&a_quite_long" in page.evaluate("document.body.innerText")
    assert page.evaluate("document.querySelectorAll('figure svg path').length") > 8
    identifiers = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(identifiers) == len(set(identifiers))


def test_pictures_follow_the_colour_of_the_page(page: Page, report: Path) -> None:
    colour = (
        "getComputedStyle(document.querySelector('figure svg text')).fill + ' on '"
        " + getComputedStyle(document.body).backgroundColor"
    )
    page.open(report, 390)
    light = page.evaluate(colour)
    page.open(report, 390, dark=True)
    dark = page.evaluate(colour)
    assert light == "rgb(27, 31, 36) on rgb(255, 255, 255)"
    assert dark == "rgb(228, 231, 234) on rgb(20, 23, 26)"


def test_many_methods_scroll_within_their_table(
    page: Page, by_hand: Callable[..., Assessment], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    posteriors = {
        f"method number {i}": Posterior(
            draws={"mu": torch.randn(4, 50, generator=generator)}, latents=("mu",)
        )
        for i in range(14)
    }
    assessment = replace(by_hand(posteriors, "method number 0"), fits={}, sample_stats={})
    path = Comparison(assessment).save(tmp_path / "report.html", progress=False)
    page.open(path, 1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    inner = "document.querySelector('.scroll')"
    assert page.evaluate(f"{inner}.scrollWidth > {inner}.clientWidth + 100")
    assert page.evaluate(f"{inner}.tabIndex") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_rules_of_accessibility_pass(
    page: Page, report: Path, axe: str, width: int, dark: bool
) -> None:
    page.open(report, width, dark)
    page.evaluate(f"{axe}; 0")
    found = page.evaluate("axe.run(document, {preload: false})")
    # A rule that could not look, such as at the contrast of text on a picture, is no pass.
    assert len(found["passes"]) > 20
    assert {rule["id"] for rule in found["passes"]} >= {"color-contrast", "region", "list"}
    broken = {
        rule["id"]: [node["html"][:200] + node["failureSummary"] for node in rule["nodes"][:3]]
        for rule in found["violations"]
    }
    assert broken == {}


def test_a_page_that_breaks_the_rules_is_found(page: Page, tmp_path: Path, axe: str) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!DOCTYPE html><html><title>Bad</title><body><main><h1>Bad</h1><img src='data:,'>"
        "<p style='color: #aaa; background: #fff'>hardly readable</p></main></body></html>"
    )
    page.open(path, 1280)
    page.evaluate(f"{axe}; 0")
    found = page.evaluate("axe.run(document, {preload: false})")
    assert {rule["id"] for rule in found["violations"]} >= {
        "color-contrast",
        "html-has-lang",
        "image-alt",
    }


def test_page_can_be_printed(page: Page, report: Path) -> None:
    page.open(report, 1280, dark=True)
    page.call("Emulation.setEmulatedMedia", media="print")
    # Ink on paper, whatever the screen is like.
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = base64.b64decode(page.call("Page.printToPDF", printBackground=False)["data"])
    assert printed.startswith(b"%PDF-")
    assert len(printed) > 20_000


def test_json_can_be_saved_from_the_page(page: Page, report: Path, tmp_path: Path) -> None:
    page.open(report, 1280)
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("document.querySelector('a[download]').click(), 0")
    saved = tmp_path / "comparison.json"
    until = time.monotonic() + 20.0
    while not saved.is_file() and time.monotonic() < until:
        page.evaluate("0")
        time.sleep(0.05)
    assert json.loads(saved.read_text(encoding="utf-8"))["reference"] == "nuts"
