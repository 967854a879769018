"""Judging runs: against a reference, without one, and mending what cannot be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppl_gen.cli.data_files import read_data
from ppl_gen.cli.outcome import NOT_TRUSTED, command
from ppl_gen.cli.output import Output
from ppl_gen.cli.parameters import (
    Arguments,
    AsJson,
    Columns,
    Constants,
    DataFiles,
    PairOfFile,
    Quiet,
    Report,
    Seed,
)
from ppl_gen.cli.runs import check_free, load_runs, name_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ppl_gen.core import Posterior
    from ppl_gen.judge import Verdict
    from ppl_gen.report import Comparison

__all__ = ["compare", "judge", "repair"]

_ENDINGS = (".html", ".htm", ".json")
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of a fit.", show_default=False)
]


@command
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of fits of one model, each FOLDER or NAME=FOLDER.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="RUN",
            help="The run that the others are judged by, its folder or its name; the first by "
            "MCMC where it is left out.",
            show_default=False,
        ),
    ] = None,
    report: Report = None,
    model: PairOfFile = None,
    arguments: Arguments = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge runs by a reference, with a verdict for each.

    Each comes with the numbers that decided it, and what to do next. Exit code 1 if one of them is
    not to be trusted, or cannot be judged.
    """
    with Output(as_json=as_json, quiet=quiet) as out:
        folders = name_runs(runs)
        if reference is not None:
            reference = _add_reference(folders, reference)
        _judge(out, folders, reference, report, model, arguments, seed)


@command
def judge(
    run: RunName,
    report: Report = None,
    model: PairOfFile = None,
    arguments: Arguments = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge one run by itself, without a reference.

    The best that can be said then is that these checks found no problem. Exit code 1 if it is not
    to be trusted, or cannot be judged.
    """
    with Output(as_json=as_json, quiet=quiet) as out:
        _judge(out, name_runs([run]), None, report, model, arguments, seed)


@command
def repair(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where to keep the better posterior.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1.0, help="Seconds after which no more is tried.")
    ] = 120.0,
    data: DataFiles = None,
    columns: Columns = None,
    constants: Constants = None,
    model: PairOfFile = None,
    arguments: Arguments = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Try what makes a run trustworthy, and judge each step.

    From longer optimisation to NUTS, until one can be trusted or the time is up. The data are those
    of the run, unless they are given. Exit code 1 if the best that was found is not to be trusted.
    """
    from ppl_gen.judge import repair as repair_posterior

    check_free(out)
    with Output(as_json=as_json, quiet=quiet) as output:
        given = read_data(data or (), constants or (), columns or ())
        posterior = load_runs({run: Path(run)}, model, arguments or (), given)[run]
        ground = _data_for(run, posterior, given)
        found = repair_posterior(
            posterior.pair,
            ground,
            posterior,
            seconds=seconds,
            seed=seed,
            progress=output.progress,
        )
        if out is not None:
            found.posterior.save(out)
        if as_json:
            output.document({**found.to_dict(), "out": None if out is None else str(out)})
        else:
            output.text(str(found))
        if out is not None:
            output.note(f"The posterior is in {out}.{_how_to_judge(out)}")
    _exit_by([found.after.verdict])


def _how_to_judge(folder: Path) -> str:
    """Return what the next command needs, where the folder does not hold its pair."""
    from ppl_gen.core import load

    known = load(folder).pair is not None
    return "" if known else " Give its pair, as it was, to judge it: --model."


def _judge(
    out: Output,
    folders: dict[str, Path],
    reference: str | None,
    report: Path | None,
    model: str | None,
    arguments: list[str] | None,
    seed: int,
) -> None:
    """Load runs, print what is to be said of them, and end with the exit code of the verdicts."""
    from ppl_gen import compare as compare_posteriors

    if report is not None:
        _check_report(report)
    posteriors = load_runs(folders, model, arguments or ())
    for name, posterior in posteriors.items():
        if posterior.pair is None:
            out.note(
                f"{name} was loaded without its pair, so that less can be checked: give it by "
                "--model MODEL, with --arg where it has arguments."
            )
    comparison: Comparison = compare_posteriors(
        posteriors, reference=reference, seed=seed, progress=out.progress
    )
    if out.as_json:
        out.document(comparison.to_dict())
    else:
        out.text(str(comparison))
    if report is not None:
        comparison.save(report, progress=out.progress)
        out.note(f"The report is in {report}.")
    _exit_by(comparison.verdicts.values())


def _exit_by(verdicts: Iterable[Verdict]) -> None:
    if not all(verdict.is_fine for verdict in verdicts):
        raise typer.Exit(NOT_TRUSTED)


def _add_reference(folders: dict[str, Path], reference: str) -> str:
    """Return the name of the reference; a folder that is none of the runs joins them."""
    if reference in folders:
        return reference
    path = Path(reference.partition("=")[2] if "=" in reference else reference)
    for name, folder in folders.items():
        if folder.resolve() == path.resolve():
            return name
    if not path.is_dir():
        from ppl_gen.core.errors import unknown

        raise unknown("reference", reference, folders)
    (name,) = name_runs([reference])
    name = str(path) if name in folders else name
    folders[name] = path
    return name


def _check_report(path: Path) -> None:
    """Refuse a report that could not be written, before the work is done."""
    from ppl_gen.report.files import check_writable

    if path.suffix.lower() not in _ENDINGS:
        raise ValueError(
            f"--report {path}: expected a name that ends in {' or '.join(_ENDINGS)}, got "
            f"{path.suffix or 'no ending'!r}."
        )
    check_writable(path)


def _data_for(run: str, posterior: Posterior, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data to repair a run on, given or its own."""
    if posterior.pair is None:
        raise ValueError(
            f"{run} was fitted to a pair that is not built in: give it by --model, with --arg "
            "where it has arguments."
        )
    data = given or posterior.data
    if data is None:
        raise ValueError(f"{run} holds no data: give them by --data.")
    return data
