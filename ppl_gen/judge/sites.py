"""The sites of several posteriors of one model: which can be compared, and as which scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.archive import StoredDraws
from ppl_gen.core.errors import SiteError, unknown
from ppl_gen.core.posterior import Posterior

__all__ = [
    "SiteDraws",
    "array_of",
    "check_data",
    "check_posteriors",
    "common_sites",
    "not_finite",
    "scalar_name",
    "worth_of_a_draw",
]

_NUMBERS = (bool, int, float, np.ndarray, np.number)

# Draws of one site by method, (chain, draw, *site), of whatever dtype they were made in.
SiteDraws: TypeAlias = Mapping[str, NDArray[Any]]


def worth_of_a_draw(posterior: Posterior) -> float:
    """Return how many independent draws one of a posterior's is worth, at most 1.

    Draws that importance weights have chosen repeat those of much weight. Of Markov chains it is
    said by their own statistics.

    Args:
        posterior: The posterior.
    """
    facts = posterior.provenance
    if facts.get("method") == "Pathfinder" and "reweighted" not in facts:
        ess = facts.get("importance_ess")
    else:
        ess = facts.get("reweighted", {}).get("importance_ess")
    count = posterior.num_chains * posterior.num_draws
    if ess is None or count == 0:
        return 1.0
    return min(1.0, max(float(ess), 1.0) / count)


def check_posteriors(posteriors: Mapping[str, Posterior], reference: str | None) -> None:
    """Refuse what is no dictionary of posteriors, or has no such reference.

    Raises:
        TypeError: If a value is no posterior, or a name no text.
        ValueError: If there is no posterior, or the reference is none of them.
    """
    if not isinstance(posteriors, Mapping):
        raise TypeError(
            "posteriors: expected a dictionary by name, such as {'svi': svi, 'nuts': nuts}, got "
            f"{type(posteriors).__name__}."
        )
    if not posteriors:
        raise ValueError("posteriors: expected at least one posterior by name, got none.")
    for name, posterior in posteriors.items():
        if not isinstance(name, str):
            raise TypeError(f"posteriors: expected names as text, got {name!r}.")
        if not isinstance(posterior, Posterior):
            raise TypeError(
                f"posterior {name!r}: expected a Posterior, as fit returns it, got "
                f"{type(posterior).__name__}."
            )
        _check_axes(name, posterior)
    if reference is not None and reference not in posteriors:
        raise unknown("reference", reference, posteriors)


def _check_axes(name: str, posterior: Posterior) -> None:
    """Refuse draws that are no numbers, or whose axes are not (chain, draw, *site)."""
    if isinstance(posterior.draws, StoredDraws):
        return  # as they were written
    first: tuple[int, ...] | None = None
    for site, draws in posterior.draws.items():
        axes = tuple(draws.shape[:2])
        first = axes if first is None else first
        if draws.ndim < 2 or axes != first or draws.is_complex():
            told = f"shape {tuple(draws.shape)}" + " of complex numbers" * draws.is_complex()
            chains = "" if len(axes) < 2 or axes == first else f", and {first} in other sites"
            raise ValueError(
                f"posterior {name!r}, site {site!r}: expected real draws with axes (chain, draw, "
                f"*site), as many as of every other site, got {told}{chains}."
            )


def check_data(posteriors: Mapping[str, Posterior]) -> None:
    """Refuse posteriors of different data, as far as they hold their data.

    Those that a pair prepares at random, such as binary pixels, are other ones in each fit.

    Raises:
        ValueError: If an argument has other values in one posterior than in another.
    """
    holding = {
        name: posterior.data
        for name, posterior in posteriors.items()
        if posterior.data is not None and not hasattr(posterior.pair, "prepare")
    }
    if len(holding) < 2:
        return
    first, *others = holding
    for other in others:
        for argument in holding[first].keys() & holding[other].keys():
            told = _difference(holding[first][argument], holding[other][argument])
            if told:
                raise ValueError(
                    f"posteriors: expected all of them to be of the same data, got another "
                    f"'{argument}' in {other!r} than in {first!r} ({told}). Compare posteriors of "
                    "one model on the same data."
                )


def _difference(a: Any, b: Any) -> str:
    """Say how two values of an argument differ; empty where they do not, but for rounding."""
    a, b = (torch.as_tensor(v) if isinstance(v, _NUMBERS) else v for v in (a, b))
    if isinstance(a, str) and isinstance(b, str) and a != b:
        return f"{b!r}, not {a!r}"
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return ""
    if a.shape != b.shape:
        return f"shape {tuple(b.shape)}, not {tuple(a.shape)}"
    a, b = a.detach().cpu(), b.detach().cpu()
    # Methods cast data to their dtype: equal to the digits of the coarser one.
    digits = [torch.finfo(t.dtype).eps for t in (a, b) if t.is_floating_point()]
    coarse = max(digits, default=0.0)
    same = torch.isclose(a.double(), b.double(), rtol=2 * coarse, atol=0.0, equal_nan=True)
    wrong = int((~same).sum())
    return f"{wrong} of {a.numel()} values differ" if wrong else ""


def common_sites(
    posteriors: Mapping[str, Posterior],
) -> tuple[dict[str, SiteDraws], dict[str, str]]:
    """Return the draws of the sites that can be compared, and why the others cannot.

    Raises:
        SiteError: If a site has different shapes in two posteriors.
        ValueError: If there is no site in common, or a latent one has draws that are not finite.
    """
    names = list(dict.fromkeys(site for p in posteriors.values() for site in p.draws))
    sites: dict[str, SiteDraws] = {}
    left_out: dict[str, str] = {}
    problems: list[str] = []
    for site in names:
        missing = [method for method, p in posteriors.items() if site not in p.draws]
        if missing:
            left_out[site] = f"not in {', '.join(missing)}"
            continue
        draws = {method: array_of(p.draws[site]) for method, p in posteriors.items()}
        shapes = {method: values.shape[2:] for method, values in draws.items()}
        if len(set(shapes.values())) > 1:
            raise SiteError(
                site,
                expected="the same shape in all posteriors",
                got=", ".join(f"{shape} in {method}" for method, shape in shapes.items()),
                remedy="Compare posteriors of the same model on the same data.",
            )
        if 0 in next(iter(shapes.values())):
            left_out[site] = "it has no elements"
            continue
        bad = [text for method, values in draws.items() if (text := not_finite(method, values))]
        if bad and any(site in p.latents for p in posteriors.values()):
            problems += [f"site '{site}': {text}" for text in bad]
        elif bad:
            left_out[site] = "; ".join(bad)
        else:
            sites[site] = draws
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}. Such a posterior has no mean: fit it again, for instance with "
            "a smaller learning rate or a narrower prior, or leave it out."
        )
    if not sites:
        found = "; ".join(
            f"{name} has {', '.join(p.draws) or 'none'}" for name, p in posteriors.items()
        )
        raise ValueError(
            f"posteriors: expected at least one site with finite draws in all of them, got none in "
            f"common ({found}). Compare posteriors of one model; local latents are drawn by "
            "posterior.sample(data)."
        )
    return sites, left_out


def array_of(draws: torch.Tensor) -> NDArray[Any]:
    """Return draws as an array that shares their memory, and cannot be written to."""
    values = draws.detach().cpu()
    if values.dtype == torch.bfloat16:  # which NumPy does not know
        values = values.float()
    array = values.numpy().view()
    array.flags.writeable = False
    return array


def not_finite(method: str, draws: NDArray[Any]) -> str:
    """Say how many draws hold a NaN or an infinity, and where; empty where none does."""
    # The extremes of draws with a NaN are NaN: nothing as large as the draws is made.
    if draws.size == 0 or np.isfinite([draws.min(), draws.max()]).all():
        return ""
    flat = np.isfinite(draws).reshape(*draws.shape[:2], -1)
    bad_draws = int((~flat.all(axis=2)).sum())
    indices = np.flatnonzero(~flat.all(axis=(0, 1)))
    where = ""
    if draws.ndim > 2:
        shape = draws.shape[2:]
        labels = [scalar_name("", np.unravel_index(i, shape)) for i in indices[:3]]
        more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
        where = f" (at {', '.join(labels)}{more})"
    total = draws.shape[0] * draws.shape[1]
    return f"{bad_draws} of {total} draws in {method!r} are NaN or infinite{where}"


def scalar_name(site: str, index: Sequence[Any]) -> str:
    """Return the name of a scalar, such as `weights[0, 2]`."""
    return f"{site}[{', '.join(str(int(i)) for i in index)}]" if len(index) else site
