"""Looking before fitting: which pairs there are, and what is wrong with one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import typer

from ppl_gen.cli.assignments import assignments
from ppl_gen.cli.data_files import read_data
from ppl_gen.cli.outcome import NOT_TRUSTED, command
from ppl_gen.cli.output import Output
from ppl_gen.cli.pairs import built_in_models, find_model
from ppl_gen.cli.parameters import (
    Arguments,
    AsJson,
    Columns,
    Constants,
    DataFiles,
    ModelName,
    Quiet,
    Seed,
)

if TYPE_CHECKING:
    from ppl_gen.cli.pairs import Model

__all__ = ["check", "models"]


@command
def models(as_json: AsJson = False) -> None:
    """List the built-in pairs, with their arguments and data."""
    described = {name: _described(model) for name, model in built_in_models().items()}
    with Output(as_json=as_json) as out:
        if as_json:
            out.document({"models": described})
            return
        out.text("\n\n".join(_block(name, facts) for name, facts in described.items()))


@command
def check(
    model: ModelName,
    data: DataFiles = None,
    columns: Columns = None,
    constants: Constants = None,
    arguments: Arguments = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a pair once and say what is wrong with it.

    Exit code 1 if something is.
    """
    from ppl_gen.core import check as check_pair

    with Output(as_json=as_json, quiet=quiet) as out:
        found = find_model(model, seed)
        values = data_of(found, data, columns, constants)
        report = check_pair(
            found.make(assignments(arguments or (), "--arg"), values, seed), values, seed=seed
        )
        if as_json:
            out.document(
                {
                    "ok": report.ok,
                    "problems": report.problems,
                    "sites": report.sites,
                    "note": report.note,
                }
            )
        else:
            out.text(str(report))
    if not report.ok:
        raise typer.Exit(NOT_TRUSTED)


def data_of(
    model: Model,
    files: list[str] | None,
    columns: list[str] | None,
    constants: list[str] | None,
) -> dict[str, Any]:
    """Return the data that options give or, without any, those that the pair has itself."""
    values = read_data(files or (), constants or (), columns or ())
    return values or model.own_data() or {}


def _described(model: Model) -> dict[str, Any]:
    """Return what there is to know of a built-in pair before it is used."""
    arguments = {
        name: "required" if p.default is p.empty else repr(p.default)
        for name, p in model.arguments.items()
    }
    parameters = list(inspect.signature(model.source.model).parameters.values())[1:]  # after self
    documented = inspect.getdoc(model.source) or ""
    return {
        "class": model.source.__name__,
        "summary": documented.splitlines()[0],
        "arguments": arguments,
        "data": [p.name for p in parameters],
        "has_own_data": model.own_data() is not None,
    }


def _block(name: str, facts: dict[str, Any]) -> str:
    arguments = [
        f"{n} ({v})" if v == "required" else f"{n}={v}" for n, v in facts["arguments"].items()
    ]
    own = " (has data of its own)" if facts["has_own_data"] else ""
    return "\n".join(
        [
            name,
            f"  {facts['summary']}",
            f"  arguments: {', '.join(arguments) or 'none'}",
            f"  data:      {', '.join(facts['data'])}{own}",
        ]
    )
