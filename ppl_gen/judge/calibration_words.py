"""What ranks of true values say of the draws that they were found among, in words."""

from __future__ import annotations

import math

from ppl_gen.judge.wording import of_error

__all__ = ["fault", "sentence"]

# Errors of so many of their standard errors are named, the largest in any case.
_CLEAR, _UNCLEAR = 3.0, 1.5
_LOG_JOINT = {
    "high": ": they are nearer to the mode than the true values, as draws that are too narrow are",
    "low": (
        ": they are further from the mode than the true values, as draws that are too wide, "
        "shifted, or do not heed the data are"
    ),
    "": "",
}


def fault(error_of_mean: float, sd_ratio: float, size: int) -> str:
    """Say how uneven ranks differ from uniform ones.

    Args:
        error_of_mean: By how much the mean is too high, in standard deviations of the draws.
        sd_ratio: The standard deviation over the right one.
        size: Number of ranks.

    Example:
        >>> fault(0.3, 0.7, 200), fault(0.02, 0.98, 200)
        ('draws are too high and too narrow', 'ranks are uneven')
    """
    # In standard errors: of the scores' mean, and of the logarithm of their standard deviation.
    shift = error_of_mean * math.sqrt(size)
    spread = 0.0 if math.isnan(sd_ratio) else math.log(sd_ratio) * math.sqrt(2 * size)
    largest = max(abs(shift), abs(spread))
    words = []
    if abs(shift) >= min(_CLEAR, largest):
        words.append("too high" if shift > 0 else "too low")
    if abs(spread) >= min(_CLEAR, largest):
        words.append("too narrow" if spread < 0 else "too wide")
    return f"draws are {' and '.join(words)}" if largest > _UNCLEAR else "ranks are uneven"


def sentence(name: str, verdict: str, error_of_mean: float, sd_ratio: float) -> str:
    """Say what was found of a quantity, with the size of the fault.

    Args:
        name: The quantity.
        verdict: "calibrated", or what `fault` returns.
        error_of_mean: As for `fault`.
        sd_ratio: As for `fault`.

    Example:
        >>> sentence("tau", "draws are too narrow", 0.01, 0.62)
        'By its ranks the sd of tau is 38 % too small.'
    """
    if verdict == "calibrated":
        return f"No fault was found in {name}."
    if verdict == "ranks are uneven":
        return (
            f"The ranks of {name} are uneven, by neither a shift nor a wrong spread alone: plot() "
            "shows where."
        )
    high, low = "too high" in verdict, "too low" in verdict
    if name == "log_joint":
        return f"{name}: its {verdict}{_LOG_JOINT['high' if high else 'low' if low else '']}."
    sizes = []
    if high or low:
        sizes.append(of_error("mean", name, error_of_mean, "sd of the draws"))
    if "narrow" in verdict or "wide" in verdict:
        sizes.append(of_error("sd", name, sd_ratio - 1.0))
    return f"By its ranks {' and '.join(sizes)}."
