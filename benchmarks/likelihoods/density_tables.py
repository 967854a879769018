"""The tables of docs/densities.md, from the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pages import Write

from likelihoods.densities import BOUND_IMAGES, BOUND_SAMPLES, MODELS

Record = dict[str, Any]


def about(results: Record) -> list[str]:
    """Return on what and for how long the models were trained."""
    minutes = results["minutes"]
    where = (
        f"{results['cores']} cores (threads: {results['threads']})"
        if results["device"] == "cpu"
        else f"one {results['device']}"
    )
    size = "small ones" if results["device"] == "cpu" else "of about the published sizes"
    lines = [
        f"Images: {results['images']}. Each model, {size}, trained for about {minutes:g} "
        f"{'minute' if minutes == 1 else 'minutes'} on {where}, by its speed at the beginning; the "
        "tables say how long it was."
    ]
    draws = " or ".join(f"{count} ({kind})" for kind, count in BOUND_SAMPLES.items())
    lines.append(
        "≤: the density has no closed form; its logarithm is estimated from below, by importance "
        f"sampling with {draws} draws for each of the first {BOUND_IMAGES:,} test images."
    )
    if results["images"] != "MNIST":
        lines.append(
            "These are not the images of MNIST, of which published numbers are: they are left out."
        )
    return lines


def binarized(results: Record) -> list[str]:
    """Return the table of binary images, in nats for an image."""
    published = results["images"] == "MNIST"
    titles = ["model", "nats", "parameters", "epochs", "seconds"]
    if published:
        titles += ["published, binarized anew", "published, binarized once"]
    lines = _header(titles)
    for name, model in MODELS.items():
        row = results["rows"]["binarized"].get(name)
        cells = _cells(name, row, "nats", 2)
        if published:
            cells += [_published(model.dynamic), _published(model.fixed)]
        lines.append(_line(cells))
    return lines


def grays(results: Record) -> list[str]:
    """Return the table of gray images, in bits for a pixel."""
    published = results["images"] == "MNIST"
    titles = ["model", "bits/dim", "parameters", "epochs", "seconds"]
    lines = _header([*titles, "published, CIFAR-10"] if published else titles)
    for name, model in MODELS.items():
        cells = _cells(name, results["rows"]["grays"].get(name), "bits_per_dim", 3)
        lines.append(_line([*cells, _published(model.cifar)] if published else cells))
    return lines


def _published(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _header(titles: list[str]) -> list[str]:
    return [_line(titles), "|".join(["", "---", *["---:"] * (len(titles) - 1), ""])]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, row: Mapping[str, Any] | None, unit: str, digits: int) -> list[str]:
    if row is None:
        return [name, "not measured", "", "", ""]
    if "failed" in row:
        return [name, "the loss became infinite", f"{row['parameters']:,}", "", ""]
    value = f"{row[unit]:.{digits}f} ± {row[f'{unit}_standard_error']:.{digits}f}"
    if row["bound"]:
        value = f"≤ {value}"
    return [
        name,
        value,
        f"{row['parameters']:,}",
        f"{row['epochs']:.1f}",
        f"{row['seconds']:.0f}",
    ]


TABLES: dict[str, Write] = {
    "about": about,
    "binarized": binarized,
    "grays": grays,
}
