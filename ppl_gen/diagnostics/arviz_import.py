"""The one place where ArviZ is imported."""

import importlib
import warnings
from types import ModuleType

__all__ = ["import_arviz"]


def import_arviz() -> ModuleType:
    """Import ArviZ without the notice that its 0.23 line prints once a day.

    The notice is a `FutureWarning` about ArviZ's own refactoring. A user of this package can do
    nothing about it, and where warnings are errors it would break the first call of the day.

    Returns:
        The module `arviz`, of the 0.2x or the 1.x line.

    Example:
        >>> import_arviz().__name__
        'arviz'
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning
        )
        return importlib.import_module("arviz")
