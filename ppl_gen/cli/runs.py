"""Posteriors that were saved: from the folders of runs to posteriors by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.cli.assignments import assignments
from ppl_gen.cli.pairs import find_model

if TYPE_CHECKING:
    from ppl_gen.core import Posterior

__all__ = ["check_free", "load_runs", "name_runs"]

# The latents of a pair that `repair` has written non-centred end so.
_NOISE = "_decentered"


def name_runs(texts: Sequence[str]) -> dict[str, Path]:
    """Return the folders of runs by the names that a report uses.

    Args:
        texts: Folders, each written `FOLDER`, whose last part is its name unless another one has
            the same, or `NAME=FOLDER`.

    Raises:
        ValueError: If two have the same name.

    Example:
        >>> list(name_runs(["runs/a", "flow=runs/b"])), list(name_runs(["1/nuts", "2/nuts"]))
        (['a', 'flow'], ['1/nuts', '2/nuts'])
    """
    given = []
    for text in texts:
        name, equals, folder = text.partition("=")
        named = bool(equals and name) and not Path(text).exists()
        given.append((name, Path(folder)) if named else ("", Path(text)))
    last = [name or path.resolve().name for name, path in given]
    found: dict[str, Path] = {}
    for (name, path), short in zip(given, last, strict=True):
        chosen = name or (short if last.count(short) == 1 else str(path))
        if chosen in found:
            raise ValueError(
                f"two runs are named '{chosen}': give each once, and a name of its own as in "
                f"other={path}."
            )
        found[chosen] = path
    return found


def check_free(out: Path | None, remedy: str = "") -> None:
    """Refuse a folder for a new run in which there is something already.

    Args:
        out: The folder, or None.
        remedy: What else than another folder would do.

    Raises:
        FileExistsError: If the folder is taken.
    """
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(
            f"--out {out}: it exists. {remedy}Choose another folder, or remove it."
        )


def load_runs(
    folders: Mapping[str, Path],
    model: str | None = None,
    arguments: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> dict[str, Posterior]:
    """Return the posteriors in folders, by name.

    No code is taken from a folder: built-in pairs are rebuilt, and any other is given again. One
    that `repair` has written non-centred is given as it was before.

    Args:
        folders: The folders of runs, by name.
        model: The pair of those runs whose pair is not built in, as the argument MODEL.
        arguments: Arguments of its constructor, each `KEY=VALUE`.
        data: Data that arguments can be taken from.

    Raises:
        FileNotFoundError: If there is no run in a folder.
        ValueError: If one is damaged or of another version, or the pair does not fit it, or is not
            needed.
    """
    from ppl_gen.core import load

    for folder in folders.values():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder. Give the --out of a fit.")
    values = assignments(arguments, "--arg")
    if model is None and values:
        raise ValueError("--arg goes with --model, which says whose arguments they are.")
    found = {name: load(folder) for name, folder in folders.items()}
    if model is None:
        return found
    lacking = [name for name, posterior in found.items() if posterior.pair is None]
    if not lacking:
        raise ValueError("--model: the pairs of these runs are built in, and known. Leave it out.")
    pair = find_model(model).make(values, data or {})
    return found | {name: _with_pair(folders[name], found[name], pair) for name in lacking}


def _with_pair(folder: Path, posterior: Posterior, pair: Any) -> Posterior:
    from ppl_gen.core import LoadError, load
    from ppl_gen.inference.non_centred import NonCentred

    try:
        return load(folder, pair=pair)
    except LoadError:
        sites = [n.removesuffix(_NOISE) for n in posterior.latents if n.endswith(_NOISE)]
        if not sites:
            raise
        return load(folder, pair=NonCentred(pair, sites))
