"""The application: its commands, and what holds for all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from ppl_gen.cli.commands.checking import check, models
from ppl_gen.cli.commands.diagnosis import doctor
from ppl_gen.cli.commands.fitting import fit, sbc
from ppl_gen.cli.commands.judging import compare, judge, repair

__all__ = ["app", "main"]

app = typer.Typer(
    name="ppl-gen",
    help="Fit a generative model by any method, and see which posterior to trust.",
    epilog="Exit codes: 0 fine, 1 not to be trusted, 2 wrong use, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    # Plain text reads the same on a terminal, in a pipe and aloud.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_EXAMPLES: dict[Callable[..., None], str] = {
    models: "ppl-gen models",
    check: "ppl-gen check pairs.py:Line --data line.csv",
    fit: "ppl-gen fit eight_schools --method svi --option guide=full_rank --out runs/svi",
    compare: "ppl-gen compare runs/svi runs/nuts --reference runs/nuts --report report.html",
    judge: "ppl-gen judge runs/svi",
    repair: "ppl-gen repair runs/svi --seconds 60 --out runs/better",
    sbc: "ppl-gen sbc eight_schools --method svi --replicates 100",
    doctor: "ppl-gen doctor",
}
for _function, _example in _EXAMPLES.items():
    app.command(epilog=f"Example: {_example}")(_function)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppl-gen {metadata.version('ppl-gen')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command `ppl-gen`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows another one
            stream.reconfigure(errors="replace")
    app(prog_name="ppl-gen")
