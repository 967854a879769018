"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Arguments",
    "AsJson",
    "Columns",
    "Constants",
    "DataFiles",
    "Device",
    "MethodName",
    "MethodOptions",
    "ModelName",
    "PairOfFile",
    "Quiet",
    "Report",
    "Seed",
]

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A built-in pair (`ppl-gen models` lists them), or FILE.py:NAME, where NAME is a "
        "class, a Pyro function or a tuple (model, guide).",
        show_default=False,
    ),
]
PairOfFile = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The pair of the run, where it is none that is built in: no code is taken from a "
        "folder.",
        show_default=False,
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="KEY=VALUE",
        help="An argument of the pair's constructor; of a network in it as network=MADE and "
        "network.context_size=10. Can be repeated.",
        show_default=False,
    ),
]
DataFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Data by the names of the model's arguments: .npz, .npy (as NAME=FILE, or named as "
        "the file), .csv or .tsv (with a line of names), .json, .nc. Can be repeated.",
        show_default=False,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME=A,B",
        help="Columns of csv files as the matrix NAME; NAME=A as a vector, NAME=A, (with a comma) "
        "as a matrix of one column. Other columns are then left out. Can be repeated.",
        show_default=False,
    ),
]
Constants = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Further data: a number, a list or a text. Can be repeated.",
        show_default=False,
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="nuts, hmc, randomwalk, gibbs, svi, pathfinder or em.",
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the method, as draws=500 or guide=full_rank. Can be repeated.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of all draws.")]
Device = Annotated[
    str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Where to write the report: .html, a page for people, or .json, for programs.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no progress and no notes; warnings stay.")
]
