"""The tables of docs/judge.md, from the results."""

from __future__ import annotations

from typing import Any

from pages import Write

from judge_cases.known import EXPECTED
from judge_cases.outcomes import Outcome
from judge_cases.references import Quality
from judge_cases.truth import Label
from ppl_gen.judge import Verdict

Record = dict[str, Any]


def _rate(found: Record) -> str:
    if not found["of"]:
        return "none"
    return (
        f"{found['count']} of {found['of']} ({found['rate']:.2%}; "
        f"{found['low']:.2%} to {found['high']:.2%})"
    )


def rates(results: Record) -> list[str]:
    cases = results["cases"]
    outcomes = cases["outcomes"]
    rows = [
        ("False trust, of those not fit for the use", _rate(cases["false_trust"]), "at most 1 %"),
        (
            "False alarm, of those that are right or fair",
            _rate(cases["false_alarm"]),
            "at most 5 %",
        ),
        ("Right or fair, good reference: CANNOT JUDGE", _rate(cases["undecided_of_fine"]), ""),
        ("Wrong, good reference: CANNOT JUDGE", _rate(cases["undecided_of_bad"]), ""),
        (
            "Means could have been used: DO NOT TRUST",
            f"{outcomes.get('too strict', 0)}",
            "",
        ),
        (
            "A use allowed by a bad reference, rightly as it happens",
            f"{outcomes.get('undue', 0)}",
            "",
        ),
        ("Without a reference: a problem missed", f"{outcomes.get('missed', 0)}", ""),
        (
            "Counted apart (near a threshold or a gate)",
            f"{cases['apart']} of {cases['cases']}",
            "",
        ),
    ]
    return [
        "| | cases (rate; 95 % interval) | goal |",
        "|---|---|---|",
        *(f"| {name} | {value} | {goal} |" for name, value, goal in rows),
    ]


def margins(results: Record) -> list[str]:
    cases = results["cases"]
    rows = [("as above", cases)] + [
        (f"{float(part):.0%} of it", found) for part, found in cases["narrower"].items()
    ]
    return [
        "| margin | false trust | false alarm | counted apart |",
        "|---|---|---|---:|",
        *(
            f"| {name} | {_rate(found['false_trust'])} | {_rate(found['false_alarm'])} | "
            f"{found['apart']} |"
            for name, found in rows
        ),
    ]


def confusion(results: Record) -> list[str]:
    lines: list[str] = []
    for quality in Quality:
        counts = results["cases"]["confusion"][quality.value]
        used = [v.value for v in Verdict if any(v.value in row for row in counts.values())]
        if not used:
            continue
        lines += [
            f"Reference: {quality.value}",
            "",
            f"| truth | {' | '.join(used)} |",
            f"|---|{'---:|' * len(used)}",
        ]
        lines += [
            f"| {label.value} | {' | '.join(str(counts[label.value].get(v, 0)) for v in used)} |"
            for label in Label
        ]
        lines.append("")
    return lines[:-1]


def kinds(results: Record) -> list[str]:
    by_kind = results["cases"]["by_kind"]
    used = sorted({name for row in by_kind.values() for name in row})
    return [
        f"| approximation | {' | '.join(used)} |",
        f"|---|{'---:|' * len(used)}",
        *(
            f"| {kind} | {' | '.join(str(row.get(name, 0)) for name in used)} |"
            for kind, row in by_kind.items()
        ),
    ]


def sizes(results: Record) -> list[str]:
    rows = results["cases"]["by_size"]
    used = [v.value for v in Verdict if any(v.value in row["verdicts"] for row in rows)]
    lines = [
        f"| worst error, in margins beyond the start of red | {' | '.join(used)} |",
        f"|---|{'---:|' * len(used)}",
    ]
    for row in rows:
        high = "and more" if row["high"] >= 1e9 else f"to {row['high']:+g}"
        cells = " | ".join(str(row["verdicts"].get(v, 0)) for v in used)
        lines.append(f"| {row['low']:+g} {high} | {cells} |")
    return lines


def failures(results: Record) -> list[str]:
    shown = (Outcome.FALSE_TRUST.value, Outcome.FALSE_ALARM.value)
    rows = [r for r in results["cases"]["wrong"] if r["outcome"] in shown]
    if not rows:
        return ["None."]
    return [
        "| | case | truth | verdict |",
        "|---|---|---|---|",
        *(
            f"| {r['outcome']} | {r['case']} | {r['label']}: "
            + ", ".join(f"{name} {value:g}" for name, value in r["errors"].items())
            + f" | {r['verdict']}: {r['sentence']} |"
            for r in sorted(rows, key=lambda r: (r["outcome"] != shown[0], r["number"]))
        ),
    ]


def known(results: Record) -> list[str]:
    lines = ["| model and guide | has to be | as known | verdicts |", "|---|---|---:|---|"]
    for name, row in results["known"].items():
        wanted = " or ".join(verdict.value for verdict in EXPECTED[name])
        counts = ", ".join(f"{count} {verdict}" for verdict, count in row["verdicts"].items())
        lines.append(f"| {name} | {wanted} | {row['as_known']} of {row['seeds']} | {counts} |")
    return lines


def cost(results: Record) -> list[str]:
    found = results["cost"]
    rows = (
        ("compare and report, s", "seconds", 1, found["goal_seconds"]),
        ("of it the report, s", "seconds_report", 1, None),
        ("peak memory of the process, MiB", "peak_mib", 0, found["goal_peak_mib"]),
        ("of it before, with all imported, MiB", "peak_mib_before", 0, None),
        ("the report, MiB", "report_mib", 2, found["goal_report_mib"]),
    )
    return [
        "| worst of three runs | draws and densities alone | fitted models | goal |",
        "|---|---:|---:|---:|",
        *(
            f"| {title} | {found['draws'][key]:.{digits}f} | {found['fitted'][key]:.{digits}f} | "
            f"{'' if goal is None else f'{goal:.0f}'} |"
            for title, key, digits, goal in rows
        ),
    ]


TABLES: dict[str, Write] = {
    "rates": rates,
    "margins": margins,
    "confusion": confusion,
    "sizes": sizes,
    "kinds": kinds,
    "failures": failures,
    "known": known,
    "cost": cost,
}
