"""The pair that a command is about: a built-in one by its name, or one from a file."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ppl_gen.cli.parts import arguments_of, parameters_of

__all__ = ["Model", "built_in_models", "find_model"]


@dataclass(frozen=True)
class Model:
    """What the argument MODEL names.

    Args:
        name: As it was given, or the name of a built-in pair.
        source: A class, a module, a Pyro function, or a tuple (model, guide).
        is_built_in: Whether it is one of the package's own.
    """

    name: str
    source: Any
    is_built_in: bool

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        """The arguments of the constructor by name; none where there is no class."""
        if not isinstance(self.source, type):
            return {}
        return parameters_of(self.source)

    def own_data(self) -> dict[str, Any] | None:
        """Return the data that a class has itself, by a static method `data`; else None."""
        source = self.source if isinstance(self.source, type) else type(self.source)
        method = inspect.getattr_static(source, "data", None)
        return dict(source.data()) if isinstance(method, staticmethod | classmethod) else None  # type: ignore[attr-defined]

    def make(self, arguments: Mapping[str, Any], data: Mapping[str, Any], seed: int = 0) -> Any:
        """Return the pair.

        Args:
            arguments: Arguments of the constructor, and those of an argument that is an object, as
                `network.features`. Of a built-in pair `num_features` and the shape of an image or
                sequence are otherwise taken from the data's "x".
            data: The data.
            seed: Seed of the first weights of networks.

        Raises:
            TypeError: If an argument has arguments, and is no object.
            ValueError: If an argument is unknown or missing, or there is no constructor.
        """
        from ppl_gen.core.scope import seeded

        if not isinstance(self.source, type):
            if arguments:
                raise ValueError(
                    f"--arg: {self.name} is no class, and takes no arguments. Leave --arg out."
                )
            return self.source
        with seeded(seed):
            guess = functools.partial(self._guess, data)
            return self.source(**arguments_of(self.source, arguments, guess, self.name))

    def _guess(self, data: Mapping[str, Any], name: str) -> Any:
        """Return what the data say about an argument of a built-in pair, or None."""
        shape = tuple(getattr(data.get("x"), "shape", ()))
        if not self.is_built_in:
            return None
        if name in ("num_features", "length") and len(shape) == 2:
            return int(shape[1])
        if name in ("image_shape", "event_shape") and len(shape) > 2:
            return tuple(int(size) for size in shape[1:])
        return None


def built_in_models() -> dict[str, Model]:
    """Return the package's own pairs by name, such as `eight_schools`."""
    from ppl_gen import models

    classes = {_snake_case(name): getattr(models, name) for name in models.__all__}
    return {name: Model(name, source, is_built_in=True) for name, source in classes.items()}


def find_model(text: str, seed: int = 0) -> Model:
    """Return the pair that the argument MODEL names.

    Args:
        text: The name of a built-in pair, or `FILE.py:NAME`, where NAME is a class, a module, a
            Pyro function or a tuple (model, guide). The file is run, as `python FILE.py` would.
        seed: Seed of the first weights of networks that the file makes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the pair is unknown, or the file cannot be run.
    """
    from ppl_gen.core.errors import did_you_mean, unknown
    from ppl_gen.core.scope import seeded

    place, _, name = text.rpartition(":")
    if not place.endswith(".py"):
        place, name = (text, "") if text.endswith(".py") else ("", "")
    if not place:
        models = built_in_models()
        if _snake_case(text) in models:
            return models[_snake_case(text)]
        error = unknown("model", text, models)
        raise ValueError(f"{error} A pair of your own is written FILE.py:NAME.")
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    with seeded(seed):
        module = _run_file(path)
    names = _pairs_in(module)
    if name in vars(module):
        source = vars(module)[name]
        if not _is_pair(source):
            raise ValueError(
                f"{text}: expected a class or function, a module or a tuple (model, guide), got "
                f"{type(source).__name__}."
            )
        return Model(text, source, is_built_in=False)
    listed = ", ".join(f"{path}:{found}" for found in names) or "none"
    what = f"no '{name}' in it" if name else "no name after it"
    raise ValueError(
        f"{path}: expected FILE.py:NAME, got {what}. What can be named there: {listed}."
        f"{did_you_mean(name, names) if name else ''}"
    )


def _snake_case(name: str) -> str:
    """Return a name in small letters with underscores.

    Example:
        >>> _snake_case("EightSchools"), _snake_case("SemiSupervisedVAE"), _snake_case("vae")
        ('eight_schools', 'semi_supervised_vae', 'vae')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module, whose folder is searched for what it imports."""
    path = path.resolve()
    # No name that a library has, or is imported by.
    name = f"file of pairs: {path}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path.name} cannot be run: {_reason(path, error)}") from error
    return module


def _reason(path: Path, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return 'it ends the program. Put that below if __name__ == "__main__".'
    if isinstance(error, SyntaxError):
        return f"{error}."
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}."


def _pairs_in(module: ModuleType) -> list[str]:
    """Return the names in a module that can stand for a pair, those that it imported left out."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and _is_pair(value)
        and getattr(value, "__module__", module.__name__) in (module.__name__, None)
    ]


def _is_pair(value: Any) -> bool:
    """Return whether a value, or what a class makes, could be a pair."""
    if isinstance(value, tuple):
        return len(value) == 2 and all(callable(part) for part in value)
    if isinstance(value, type):
        calls: Callable[..., Any] | None = getattr(value, "model", None)
        return callable(calls) or callable(getattr(value, "forward", None))
    return callable(value)
