"""What to do next, as one line of code."""

from __future__ import annotations

import json
import keyword
import math

from ppl_gen.core.posterior import Posterior
from ppl_gen.judge.findings import Gate, Thresholds

__all__ = [
    "as_reference",
    "better_guide",
    "longer_chains",
    "many_draws",
    "more_draws",
    "nuts",
    "relabel",
    "repair",
    "reweight",
    "sample",
    "variable",
]

# What the lines are made of: a posterior of such a name would take its place.
_TAKEN = ("NUTS", "SVI", "data", "pair", "pg", "posteriors", "repaired")
# The next richer guide.
_RICHER = {
    "delta": "full_rank",
    "laplace": "full_rank",
    "mean_field": "full_rank",
    "linear_response": "full_rank",
    "low_rank": "full_rank",
    "structured": "full_rank",
    "full_rank": "flow",
}


def variable(name: str) -> str:
    """Return how code has a posterior: as a variable, or by name from the dictionary compared.

    Example:
        >>> variable("nuts"), variable("mean-field")
        ('nuts', 'posteriors["mean-field"]')
    """
    usable = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    if usable and name not in _TAKEN:
        return name
    return f"posteriors[{json.dumps(name, ensure_ascii=False)}]"


def repair(name: str) -> str:
    """Return the line that climbs the ladder of repairs."""
    return f"repaired = pg.repair(pair, data, {variable(name)})"


def reweight(name: str) -> str:
    """Return the line that chooses draws by their weights."""
    return f"{variable(name)} = {variable(name)}.reweight()"


def many_draws(name: str, posterior: Posterior) -> str:
    """Return the line that draws from the guide of a posterior of a single draw, or fits one."""
    if _draws_anew(posterior):
        return f"{variable(name)} = {variable(name)}.sample(draws=1000)"
    options = posterior.provenance.get("options", {})
    guide = options.get("guide") if isinstance(options, dict) else None
    told = f'guide="{guide}"' if isinstance(guide, str) else ""
    return f"{variable(name)} = pg.fit(pair, data, SVI({told}))"


def as_reference(name: str) -> str:
    """Return the line that measures the others by this one."""
    return f"comparison = pg.compare(posteriors, reference={json.dumps(name, ensure_ascii=False)})"


def sample(name: str) -> str:
    """Return the line that draws the latents of rows of data."""
    return f"{variable(name)} = {variable(name)}.sample(data)"


def relabel(name: str) -> str:
    """Return the line that gives components the same labels in all draws."""
    return f"{variable(name)} = {variable(name)}.pair.relabel({variable(name)})"


def nuts(name: str, **options: float) -> str:
    """Return the line that fits chains."""
    told = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{variable(name)} = pg.fit(pair, data, NUTS({told}))"


def better_guide(
    name: str, posterior: Posterior, *, ended: bool | None, misplaced: bool = False
) -> str:
    """Return the line that fits the next better guide.

    Args:
        name: Name of the posterior.
        posterior: The posterior.
        ended: Whether its optimisation came to its end.
        misplaced: Whether a mean is wrong: a guide of more correlations may not mend that.
    """
    options = posterior.provenance.get("options", {})
    guide = options.get("guide") if isinstance(options, dict) else None
    if posterior.provenance.get("method") != "SVI" or not isinstance(guide, str):
        return nuts(name)
    if ended is False:
        steps = options.get("steps")
        more = f", steps={2 * steps}" if isinstance(steps, int) else ""
        return f'{variable(name)} = pg.fit(pair, data, SVI(guide="{guide}"{more}))'
    if guide in _RICHER and not misplaced:
        return f'{variable(name)} = pg.fit(pair, data, SVI(guide="{_RICHER[guide]}"))'
    return repair(name)


def more_draws(name: str, posterior: Posterior, times: float) -> str:
    """Return the line that draws more.

    Args:
        name: Name of the posterior.
        posterior: The posterior.
        times: How many times as many draws are needed.
    """
    times = min(max(times, 1.5), 100.0)
    wanted = _round_up(posterior.num_draws * (times - 1.0))
    if posterior.is_mcmc and posterior.checkpoint:
        return f"{variable(name)} = {variable(name)}.extend({wanted})"
    if posterior.is_mcmc:
        return nuts(name, draws=wanted + posterior.num_draws)
    if not _draws_anew(posterior):
        return nuts(name)
    return f"{variable(name)} = {variable(name)}.sample(draws={wanted + posterior.num_draws})"


def longer_chains(
    name: str,
    posterior: Posterior,
    gate: Gate,
    thresholds: Thresholds = Thresholds(),  # noqa: B008
) -> str:
    """Return the line that mends chains that others cannot be judged by.

    Args:
        name: Name of the posterior.
        posterior: The chains.
        gate: What was found of them.
        thresholds: What they have to meet.
    """
    values = gate.values
    gathered = "gathered" in gate.sentence or "diverged" in gate.sentence
    if gathered:
        return nuts(name, target_accept=0.99)
    ess = values.get("ess", math.nan)
    if posterior.num_chains == 1:
        return nuts(name, chains=4)
    if gate.short and math.isnan(ess):
        if posterior.checkpoint:
            return f"{variable(name)} = {variable(name)}.extend(1000)"
        return nuts(name)
    if values.get("r_hat", math.inf) > 1.1 or math.isnan(ess):
        length = _round_up(4 * max(posterior.num_draws, 250))
        return nuts(name, warmup=length, draws=length)
    return more_draws(name, posterior, max(1.25 * thresholds.min_ess / max(ess, 1.0), 2.0))


def _draws_anew(posterior: Posterior) -> bool:
    """Return whether `sample` can be called: a loaded posterior may be without its pair."""
    return posterior.guide is not None and posterior.pair is not None


def _round_up(count: float) -> int:
    """Return a number of draws rounded up to two digits, at least 100."""
    count = max(count, 100.0)
    unit = 10 ** (math.floor(math.log10(count)) - 1)
    return int(math.ceil(count / unit) * unit)
