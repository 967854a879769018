"""The importance weights of a guide's draws, and the draws that they choose."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger

from ppl_gen.core.arguments import check_captured, num_bytes
from ppl_gen.core.draws import map_draws
from ppl_gen.core.errors import SiteError, check_count
from ppl_gen.core.evaluation import compiled
from ppl_gen.core.log_density import LogDensity
from ppl_gen.core.method import GuideDraws
from ppl_gen.core.posterior import Outline, Posterior
from ppl_gen.core.scope import isolated
from ppl_gen.diagnostics.psis import Smoothed, format_pareto_k, psis, resample

__all__ = [
    "Weighed",
    "can_mend",
    "hardly_matter",
    "in_double",
    "reweighted",
    "weigh",
    "weights_hold",
]

Array: TypeAlias = NDArray[np.float64]

# k-hat is noisy: its standard error is 0.05 at so many draws.
_MOST_DRAWS = 100_000
_LEAST_DRAWS = 1_000
# Of a model that runs on one draw at a time, which takes a millisecond or more.
_ONE_BY_ONE = 2_000
# Numbers in the data of all draws together: a few seconds of the compiled density; PyTorch is
# slower.
_WORK = 2 * 10**9
_EAGER_WORK = 2 * 10**8
# Numbers in the draws that are kept: 64 MB.
_KEPT = 2**23
# Numbers that are at work at once, and how many a flow's networks make of one coordinate.
_BLOCK = 2**22
_WIDTH = 100
_LANES = 8
# Draws that are worth a smaller part of their number get a warning; those that are worth a larger
# one have hardly anything in the tail of their weights, however heavy it is.
_LEAST_SHARE = 0.1
_LARGE_SHARE = 0.8


@dataclass(frozen=True, eq=False)
class Weighed:
    """Draws of a guide with their importance weights.

    Args:
        values: Latent and deterministic sites by name, (draw, *site), in the model's units.
        log_ratios: Log joint density of model and data minus log density of the guide, up to a
            constant that is the same for all draws, (draw,); -inf and NaN as they come.
        log_prob: Log joint density at each draw, in the guide's own space, (draw,).
        smoothed: The smoothed weights with k-hat; None where no ratio is finite, or one is +inf.
    """

    values: Mapping[str, torch.Tensor]
    log_ratios: Array
    log_prob: Array
    smoothed: Smoothed | None


@runtime_checkable
class _VectorGuide(Protocol):
    """A guide over the unconstrained vector of a `LogDensity`."""

    def rsample(self, draws: int) -> torch.Tensor: ...

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor: ...


def weigh(posterior: Posterior, draws: int | None = None, seed: int = 0) -> Weighed:
    """Draw anew from a posterior's guide, and weigh the draws against model and data.

    Densities are computed in double precision, and by the compiled log density where there is one.
    A posterior without its pair, as it can be loaded, has the densities of the draws that it holds;
    these are weighed then.

    Args:
        posterior: A variational posterior. One of mini-batches holds no data, and is given some:
            `weigh(posterior.sample(data))`.
        draws: Number of draws; None: 100,000, and down to 1,000 of models with much data or many
            sites. It depends on sizes and on how the model can be run, never on time.
        seed: Seed of the draws.

    Returns:
        The draws with their weights.

    Raises:
        ValueError: If the draws have no weights, and why: they are those of Markov chains, or of a
            point, are weighted already, or what is needed is missing.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational
        Inference, arXiv:1802.02538.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from ppl_gen import fit
        >>> from ppl_gen.inference import SVI
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> posterior = fit(model, {}, SVI(guide="mean_field"), progress=False)
        >>> weighed = weigh(posterior, draws=2000)
        >>> weighed.values["x"].shape
        torch.Size([2000, 2])
        >>> weighed.smoothed.reliable
        True
    """
    if draws is not None:
        check_count("draws", draws)
    _check_weighable(posterior)
    fresh = posterior.guide is not None and posterior.pair is not None
    if not fresh or posterior.data is None:
        values, log_prob, log_q = _stored(posterior, draws)
    else:
        wide = in_double(posterior)
        with isolated(seed, wide._dtype):
            draw = _of_vectors if isinstance(posterior.guide, _VectorGuide) else _of_pair
            values, log_prob, log_q = draw(wide, draws)
    log_ratios = log_prob - log_q
    usable = bool(np.isfinite(log_ratios).any()) and not bool(np.isposinf(log_ratios).any())
    return Weighed(values, log_ratios, log_prob, psis(log_ratios) if usable else None)


def reweighted(posterior: Posterior, draws: int | None, seed: int) -> Posterior:
    """Return draws that importance weights have chosen, as `Posterior.reweight` describes."""
    if draws is not None:
        check_count("draws", draws)
    count = draws or posterior.num_chains * posterior.num_draws or _LEAST_DRAWS
    weighed = weigh(posterior, seed=seed)
    smoothed = weighed.smoothed
    if smoothed is None:
        bad = int((~np.isfinite(weighed.log_ratios)).sum())
        msg = (
            f"the importance weights of this posterior mean nothing: at {bad:,} of "
            f"{len(weighed.log_ratios):,} draws of its guide the log density is not finite, or the "
            "guide's is zero. Take another guide, or NUTS: pg.fit(pair, data, NUTS())."
        )
        raise ValueError(msg)
    chosen = resample(smoothed.log_weights, count, np.random.default_rng(seed))
    values = {
        name: value[torch.from_numpy(chosen)].unsqueeze(0).to(_dtype_of(posterior, name, value))
        for name, value in weighed.values.items()
    }
    facts = {
        "draws": len(weighed.log_ratios),
        "pareto_k": smoothed.pareto_k,
        "pareto_k_error": smoothed.pareto_k_error,
        "threshold": smoothed.threshold,
        "importance_ess": smoothed.ess,
        "reliable": can_mend(smoothed),
        "seed": seed,
    }
    before = (f"Before reweighting: {warning}" for warning in posterior.warnings)
    return dataclasses.replace(
        posterior,
        draws=values,
        latents=tuple(name for name in posterior.latents if name in values),
        sample_stats={"lp": torch.from_numpy(weighed.log_prob[chosen]).unsqueeze(0)},
        # It would draw what no weight has chosen.
        guide=None,
        elbo=None,
        warnings=(*_told(smoothed, count), *before),
        provenance={**posterior.provenance, "reweighted": facts},
    )


def _check_weighable(posterior: Posterior) -> None:
    """Refuse a posterior whose draws have no importance weights."""
    method = posterior.provenance.get("method", "an unknown method")
    if posterior.is_mcmc:
        reason = (
            f"the draws by {method} are Markov chains, and no guide's: they have no importance "
            "weights, and need none. Use them as they are."
        )
    elif posterior.is_point or getattr(posterior.guide, "is_point", False):
        reason = (
            f"a posterior by {method} that is one point has no density to weigh. Take a guide that "
            'has one: pg.fit(pair, data, SVI(guide="full_rank")).'
        )
    elif "reweighted" in posterior.provenance:
        reason = (
            "these draws were chosen by importance weights already. Weigh the posterior that they "
            "are of."
        )
    elif posterior.local_plate is not None:
        reason = (
            f"it was fitted to mini-batches of plate '{posterior.local_plate}' and holds no data. "
            "Give it some: posterior.sample(data); a few rows will do where every latent belongs "
            "to a row."
        )
    else:
        return
    raise ValueError(f"no importance weights: {reason}")


def _stored(
    posterior: Posterior, draws: int | None
) -> tuple[dict[str, torch.Tensor], Array, Array]:
    """Return the draws that a posterior holds, with their densities."""
    if posterior.provenance.get("method") == "Pathfinder":
        msg = (
            "no importance weights: draws by Pathfinder were chosen by weights already, and its "
            "guide needs the pair to be weighed: pg.load(path, pair=pair)."
        )
        raise ValueError(msg)
    if not {"lp", "log_q"} <= posterior.sample_stats.keys():
        msg = (
            "no importance weights: this posterior has no guide with pair and data, nor the "
            "densities 'lp' and 'log_q' of its draws. Load it with its pair, pg.load(path, "
            "pair=pair), or fit a guide: SVI()."
        )
        raise ValueError(msg)
    values = {name: value.flatten(0, 1)[:draws] for name, value in posterior.draws.items()}
    densities = (posterior.sample_stats[name].flatten()[:draws] for name in ("lp", "log_q"))
    log_prob, log_q = (_numpy(value) for value in densities)
    return values, log_prob, log_q


def in_double(posterior: Posterior) -> Posterior:
    """Return a posterior that is computed in double precision, where its model can be."""
    if posterior._dtype == torch.float64:
        return posterior
    wide = dataclasses.replace(posterior, provenance={**posterior.provenance, "dtype": "float64"})
    pair, _ = wide._run_on(None)
    try:
        check_captured(pair, torch.float64, torch.device("cpu"))
    except SiteError:  # a tensor that it closes over stays in its own dtype
        return posterior
    return wide


def _of_vectors(
    posterior: Posterior, draws: int | None
) -> tuple[dict[str, torch.Tensor], Array, Array]:
    """Draw from a guide over the unconstrained vector."""
    assert posterior.pair is not None
    assert posterior.data is not None
    density = LogDensity(posterior.pair, posterior.data, dtype=posterior._dtype, prepared=True)
    outline = Outline.of(posterior)
    guide: Any = copy.deepcopy(posterior.guide)
    guide.to(density.dtype)
    with warnings.catch_warnings():
        # The fit has said so.
        warnings.filterwarnings("ignore", message="the model runs on the eager engine")
        native = compiled(density, _LANES)
    work = num_bytes(density.data) // 8 + density.dim
    if draws is None:
        runs_model = native is None or bool(outline.deterministic)
        one_by_one = runs_model and not _together(lambda n: density.log_prob(guide.rsample(n)))
        draws = _number(outline, work, eager=native is None, one_by_one=one_by_one)
    parts, log_q, log_prob = [], [], []
    rows = max(1, _BLOCK // (_WIDTH * density.dim + (10 * work if native is None else 0)))
    with torch.no_grad():
        while draws > 0:
            part = guide.rsample(min(rows, draws))
            parts.append(part)
            log_q.append(guide.log_prob(part))
            log_prob.append(density.log_prob(part) if native is None else native(part)[0])
            draws -= len(part)
        values = density.constrain(torch.cat(parts))
    values |= _deterministic(outline, values)
    return values, _numpy(torch.cat(log_prob)), _numpy(torch.cat(log_q))


def _of_pair(
    posterior: Posterior, draws: int | None
) -> tuple[dict[str, torch.Tensor], Array, Array]:
    """Draw from the pair's own guide."""
    assert posterior.guide is not None
    pair, data = posterior._prepared(None)
    outline = Outline.of(posterior)
    guide: Any = posterior.guide
    if draws is None:
        together = _together(lambda n: guide.draw(pair, data, n))
        draws = _number(outline, num_bytes(data) // 8 + 1, eager=True, one_by_one=not together)
    drawn: GuideDraws = guide.draw(pair, data, draws)
    _check_spread(drawn, outline)
    assert drawn.log_q is not None
    values = drawn.values | _deterministic(outline, drawn.values)
    return values, _numpy(drawn.log_prob), _numpy(drawn.log_q)


def _deterministic(outline: Outline, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the deterministic sites of all draws."""
    if not outline.deterministic:
        return {}
    latents = {name: value for name, value in values.items() if name in outline.sites}
    return map_draws(outline.values, latents, bytes_per_draw=num_bytes(outline.data))


def _check_spread(drawn: GuideDraws, outline: Outline) -> None:
    """Refuse a guide that takes some latent for known: weights say nothing of a point."""
    for name, value in drawn.values.items():
        continuous = name in outline.sites and outline.sites[name].kind == "latent"
        if continuous and len(value) > 1 and bool((value == value[0]).all()):
            msg = (
                f"no importance weights: the guide takes '{name}' for known, with one value in all "
                "draws, which has no density. Give it a distribution of its own in the guide, or "
                'take SVI(guide="full_rank").'
            )
            raise ValueError(msg)


def _number(outline: Outline, work: int, *, eager: bool, one_by_one: bool) -> int:
    """Return how many draws are weighed.

    Args:
        outline: The sites, whose values are kept.
        work: Numbers that the density of one draw is computed from.
        eager: Whether PyTorch computes it.
        one_by_one: Whether the model runs on one draw at a time only.
    """
    kept = sum(
        math.prod(site.shape)
        for site in outline.sites.values()
        if site.kind in ("latent", "discrete", "deterministic")
    )
    most = _ONE_BY_ONE if one_by_one else _MOST_DRAWS
    most = min(most, (_EAGER_WORK if eager else _WORK) // work, _KEPT // max(kept, 1))
    return max(most, _LEAST_DRAWS)


class _Count(Messenger):
    """Counts the sample statements that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.count += 1


def _together(run: Callable[[int], object]) -> bool:
    """Return whether as many statements are run for twelve draws as for two."""
    counts = []
    for draws in (2, 2, 12):  # a first run may look at more
        with _Count() as statements:
            run(draws)
        counts.append(statements.count)
    return counts[1] == counts[2]


def _numpy(values: torch.Tensor) -> Array:
    return np.asarray(values.detach().cpu().double().numpy())


def _dtype_of(posterior: Posterior, name: str, value: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a posterior holds a site."""
    return posterior.draws[name].dtype if name in posterior.draws else value.dtype


def can_mend(smoothed: Smoothed) -> bool:
    """Return whether weighted draws can be relied on.

    So they can where k-hat is below its threshold, and the upper end of its interval below what so
    many draws can bear; or where draws are worth nearly their number.

    Args:
        smoothed: The smoothed weights.
    """
    draws, high = len(smoothed.log_weights), smoothed.interval()[1]
    return weights_hold(smoothed.pareto_k, high, smoothed.threshold, smoothed.ess, draws)


def weights_hold(pareto_k: float, high: float, threshold: float, ess: float, draws: int) -> bool:
    """Return the same by the numbers alone.

    Args:
        pareto_k: k-hat.
        high: The upper end of its interval.
        threshold: Its threshold.
        ess: Effective sample size of the weighted draws.
        draws: Number of draws.
    """
    if hardly_matter(high, ess, draws):
        return True
    return pareto_k < threshold and high < _bearable(draws)


def hardly_matter(high: float, ess: float, draws: int) -> bool:
    """Return whether weights are so even that their tail is of no account.

    Beyond a shape of 1 they have no mean: what little there is in their tail may be another mode,
    as heavy as what the draws have seen.

    Args:
        high: The upper end of the interval of k-hat.
        ess: Effective sample size of the weighted draws.
        draws: Number of draws.
    """
    return high < 1 and ess >= _LARGE_SHARE * draws


def _bearable(draws: int) -> float:
    """Return the largest shape at which so many draws still have a small error.

    Vehtari et al. (2024), arXiv:1507.02646, section 3.2.3: of shape k it takes 10^(1 / (1 - k)).
    """
    return 1 - 1 / math.log10(draws) if draws > 1 else -math.inf


def _told(smoothed: Smoothed, draws: int) -> tuple[str, ...]:
    """Return what to know of draws that weights have chosen."""
    if not can_mend(smoothed):
        found = f"Pareto k-hat is {format_pareto_k(smoothed.pareto_k, smoothed.interval())}"
        if not smoothed.reliable:
            return (
                f"{found}, above {smoothed.threshold:.2f}: the guide misses too much of the "
                "posterior for weights to mend it. Do not use these draws: take a better guide, or "
                "NUTS.",
            )
        limit = _bearable(len(smoothed.log_weights))
        return (
            f"{found}, which reaches above {limit:.2f}: whether weights mend the guide is open. "
            "Compare with posterior.reweight(seed=1), or take a better guide.",
        )
    if smoothed.ess < _LEAST_SHARE * draws:
        return (
            f"The {draws:,} draws are worth no more than {smoothed.ess:.0f} independent ones: a "
            "few of those weighed carry most of the weight. Take a better guide.",
        )
    return ()
