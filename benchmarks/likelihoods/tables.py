"""The tables of docs/autoregressive.md, from the results."""

from __future__ import annotations

from typing import Any

from pages import Write

from likelihoods.sampling import RATE

Record = dict[str, Any]


def goal(value: float, limit: float | None, unit: str = "", *, at_least: bool = False) -> str:
    """Return a goal in words, and whether it is met; nothing where there is none."""
    if limit is None:
        return ""
    met = value >= limit if at_least else value <= limit
    return f"{'at least' if at_least else 'at most'} {limit:,g}{unit}: {'met' if met else 'missed'}"


def of_sampling(results: Record) -> list[str]:
    lines = [
        "| network | together | elements a second | times the plain way | goals | ties |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for name, case in results["sampling"]["cases"].items():
        if "cannot" in case:
            lines.append(f"| {name} | | {case['cannot']} | | | |")
        for rows, found in case["rows"].items():
            ties = found["ties"]
            goals = [
                goal(found["per_second"], found["goal_per_second"], " a second", at_least=True),
                goal(found["ratio"], found["goal_of_ratio"], " times", at_least=True),
            ]
            lines.append(
                f"| {name} | {rows} | {found['per_second']:,.0f} | {found['ratio']:,.0f} | "
                f"{'; '.join(filter(None, goals))} | {ties['count']} of {ties['of']:,} |"
            )
    return [*lines, "", *_about_sampling(results["sampling"])]


def _about_sampling(found: Record) -> list[str]:
    planned = [case for case in found["cases"].values() if "planning_seconds" in case]
    times = [case["planning_seconds"] for case in planned]
    lines = [
        f"The first draw plans for {min(times):.1f} to {max(times):.1f} s, once for a network. "
        f"Compiling takes {found['compile_seconds']:.0f} s, once on a machine."
    ]
    for name, case in found["cases"].items():
        if name.startswith("WaveNet") and "1" in case["rows"]:
            factor = case["rows"]["1"]["per_second"] / RATE
            lines.append(f"One stream of the WaveNet is {factor:.2f} times as fast as it sounds.")
    if "memory" in found:
        texts = [f"{mib:.0f} MiB at {int(n):,} samples" for n, mib in found["memory"].items()]
        lines.append(f"Planning and sampling a stream of the WaveNet take {', '.join(texts)}.")
    return [*lines, machine(found)]


def of_training(results: Record) -> list[str]:
    found = results["training"]
    lines = [
        "| network | `pg.fit`, s a step | by hand | ratio, median (min to max) | goal |",
        "|---|---:|---:|---:|---|",
    ]
    for name, case in found["cases"].items():
        ratios = case["ratios"]
        lines.append(
            f"| {name} | {case['seconds']['fit']:.3f} | {case['seconds']['by_hand']:.3f} | "
            f"{case['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | "
            f"{goal(case['ratio'], found['goal'])} |"
        )
    return [*lines, "", machine(found)]


def of_truth(results: Record) -> list[str]:
    found = results["truth"]
    small, wave = found["small images"], found["wavenet"]
    size = " x ".join(map(str, small["image_shape"]))
    rows = [("MADE on MNIST, binarized anew", found["made"])]
    rows += [(f"{name} on {size} pixels", small[name]) for name in ("MADE", "gated PixelCNN")]
    lines = [
        "| | reached on test data | parameters | steps | seconds | goal |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, row in rows:
        reached = f"{row['nats']:.2f} ± {row['standard_error']:.2f} nats"
        text = goal(row["nats"], row.get("goal"))
        if name.startswith("gated"):
            text = goal(-small["gain"]["nats"], 0.0).replace("at most 0", "better than MADE")
        lines.append(_row(name, reached, row, text))
    reached = f"{wave['bits']:.2f} bits a sample"
    name = f"WaveNet on {wave['dataset']}"
    lines.append(_row(name, reached, wave, goal(wave["bits"], wave["goal"])))
    gain = small["gain"]
    passes = ", ".join(
        f"{small[name]['jacobi']['passes']} for {name}" for name in ("MADE", "gated PixelCNN")
    )
    return [
        *lines,
        "",
        f"On the same images of {size} pixels the gated PixelCNN is better than MADE by "
        f"{gain['nats']:.2f} ± {gain['standard_error']:.2f} nats.",
        f"Runs of the whole network from zeros to its draws, {small['MADE']['jacobi']['elements']} "
        f"pixels of {small['MADE']['jacobi']['rows']} images (Jacobi iteration): {passes}.",
        machine(found),
    ]


def _row(name: str, reached: str, row: Record, text: str) -> str:
    return (
        f"| {name} | {reached} | {row['parameters']:,} | {row['steps']:,} | {row['seconds']:.0f} | "
        f"{text} |"
    )


def machine(found: Record) -> str:
    where = found["machine"]
    return (
        f"{where['cores']} cores, threads: {where['threads']}, a load of "
        f"{where['load_average_before']:g} at the start, torch "
        f"{where['versions']['torch'].split('+')[0]}."
    )


TABLES: dict[str, Write] = {"sampling": of_sampling, "training": of_training, "truth": of_truth}
