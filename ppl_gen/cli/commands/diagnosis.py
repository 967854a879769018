"""Looking at the machine: what is installed, and what does not work."""

from __future__ import annotations

import dataclasses

import typer

from ppl_gen.cli.examination import examine
from ppl_gen.cli.outcome import NOT_TRUSTED, command
from ppl_gen.cli.output import Output
from ppl_gen.cli.parameters import AsJson

__all__ = ["doctor"]


@command
def doctor(as_json: AsJson = False) -> None:
    """Say what on this machine does not work.

    Looked at are versions, torchvision, the C++ compiler, the cache, GPU, threads and shared
    memory. Exit code 1 if something is broken.
    """
    with Output(as_json=as_json) as out:
        findings = list(examine())
        works = all(finding.status != "broken" for finding in findings)
        if as_json:
            out.document({"ok": works, "findings": [dataclasses.asdict(f) for f in findings]})
        else:
            out.table(
                ["what", "status", "found"],
                [(f.name, f.status, f.detail) for f in findings],
                words=3,
            )
            for finding in findings:
                if finding.remedy:
                    out.text(f"{finding.name}: {finding.remedy}")
    if not works:
        raise typer.Exit(NOT_TRUSTED)
