"""Running a method: one fit, or the many of a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppl_gen.cli.assignments import assignments, split_assignment
from ppl_gen.cli.commands.checking import data_of
from ppl_gen.cli.methods import find_method
from ppl_gen.cli.outcome import INTERRUPTED, NOT_TRUSTED, command
from ppl_gen.cli.output import Output
from ppl_gen.cli.pairs import find_model
from ppl_gen.cli.parameters import (
    Arguments,
    AsJson,
    Columns,
    Constants,
    DataFiles,
    Device,
    MethodName,
    MethodOptions,
    ModelName,
    Quiet,
    Seed,
)
from ppl_gen.cli.runs import check_free

if TYPE_CHECKING:
    import pandas as pd

    from ppl_gen.core import Posterior

__all__ = ["fit", "sbc"]

# More rows than this are no table to read; all of them are in the JSON.
_PRINTED = 40


@command
def fit(
    model: ModelName,
    method: MethodName = "nuts",
    options: MethodOptions = None,
    data: DataFiles = None,
    columns: Columns = None,
    constants: Constants = None,
    arguments: Arguments = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where to keep the posterior.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, where it stopped.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit a pair to data by a method."""
    from ppl_gen.core import NonFiniteLossError
    from ppl_gen.core import fit as fit_pair

    if resume and out is None:
        raise ValueError("--resume goes on with a run in a folder: name it by --out.")
    if not resume:
        check_free(out, "Go on with the run there by --resume. ")
    with Output(as_json=as_json, quiet=quiet) as output:
        chosen = find_method(method, assignments(options or (), "--option"))
        found = find_model(model, seed)
        values = data_of(found, data, columns, constants)
        pair = found.make(assignments(arguments or (), "--arg"), values, seed)
        try:
            posterior = fit_pair(
                pair,
                values,
                chosen,
                seed=seed,
                device=device,
                progress=output.progress,
                out=out,
                resume=resume,
            )
        except NonFiniteLossError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(NOT_TRUSTED) from error
        if output.quiet:  # else the fit has said so
            for warning in posterior.warnings:
                typer.echo(f"Warning: {warning}", err=True)
        _show(output, found.name, posterior, out)
        if posterior.interrupted:
            output.note(_after_interrupt(out))
            raise typer.Exit(INTERRUPTED)
        if out is not None:
            output.note(f"The posterior is in {out}. What speaks against it: ppl-gen judge {out}")


@command
def sbc(
    model: ModelName,
    method: MethodName = "nuts",
    options: MethodOptions = None,
    replicates: Annotated[
        int, typer.Option("--replicates", min=1, help="Number of simulated data sets.")
    ] = 200,
    data: DataFiles = None,
    columns: Columns = None,
    constants: Constants = None,
    arguments: Arguments = None,
    observed: Annotated[
        list[str] | None,
        typer.Option(
            "--observed",
            metavar="SITE=ARGUMENT",
            help="The model's argument that holds the values of an observed site, where it is "
            "named otherwise. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Number of processes that fit at once; as many as there are processors where it "
            "is left out.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to keep the ranks, as lines of JSON, so that --resume can go on.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Test a method on data simulated from the model.

    Simulation-based calibration: does it find the values that the data were made with? Observed
    values are not looked at; other data, such as covariates, are those of the simulations. Exit
    code 1 if the method is miscalibrated.
    """
    from ppl_gen.judge import simulation_based_calibration

    if resume and out is None:
        raise ValueError("--resume goes on with what is in a file: name it by --out.")
    with Output(as_json=as_json, quiet=quiet) as output:
        chosen = find_method(method, assignments(options or (), "--option"))
        found = find_model(model, seed)
        values = data_of(found, data, columns, constants)
        pair = found.make(assignments(arguments or (), "--arg"), values, seed)
        calibration = simulation_based_calibration(
            pair,
            values,
            chosen,
            replicates=replicates,
            observed=dict(split_assignment(text, "--observed") for text in observed or ()),
            seed=seed,
            device=device,
            progress=output.progress,
            out=out,
            resume=resume,
            workers=workers,
        )
        passes = calibration.passes()
        if as_json:
            output.document(
                {
                    "model": found.name,
                    **calibration.to_dict(),
                }
            )
        else:
            output.text(str(calibration))
        if calibration.interrupted:
            output.note(f"Interrupted after {len(calibration.ranks)} of {replicates} data sets.")
            raise typer.Exit(INTERRUPTED)
    if not passes:
        raise typer.Exit(NOT_TRUSTED)


def _after_interrupt(out: Path | None) -> str:
    if out is None:
        return "Interrupted: these are the draws so far. With --out they would have been kept."
    return f"Interrupted: {out} has the draws so far. The same command with --resume goes on."


def _show(output: Output, model: str, posterior: Posterior, out: Path | None) -> None:
    """Print what a fit gave."""
    facts, table = posterior.provenance, posterior.summary()
    if output.as_json:
        known = ("method", "options", "seed", "seconds", "gradient_evaluations", "converged")
        output.document(
            {
                "model": model,
                **{name: facts[name] for name in known if name in facts},
                "chains": posterior.num_chains,
                "draws": posterior.num_draws,
                "interrupted": posterior.interrupted,
                "elbo": None if posterior.elbo is None else posterior.elbo[0],
                "warnings": posterior.warnings,
                "out": None if out is None else str(out),
                "summary": {str(name): dict(row) for name, row in table.iterrows()},
            }
        )
        return
    size = f"{posterior.num_chains} x {posterior.num_draws} draws"
    output.text(f"{model} by {facts['method']}: {size}, {facts['seconds']:.1f} s")
    if posterior.elbo is not None:
        output.text(f"ELBO {posterior.elbo[0]:.3f}")
    if len(table):
        output.table(["parameter", *table.columns], _rows(table.head(_PRINTED)))
    if len(table) > _PRINTED:
        output.text(f"{len(table) - _PRINTED} more parameters are left out here.")


def _rows(table: pd.DataFrame) -> list[list[str]]:
    return [[str(name), *(_number(value) for value in row)] for name, row in table.iterrows()]


def _number(value: Any) -> str:
    return f"{value:.4g}"
