"""Judging posteriors of one model: gates first, then each quantity, then all together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_gen.core.posterior import Posterior
from ppl_gen.core.progress import ProgressBar
from ppl_gen.diagnostics.marginals import Marginals
from ppl_gen.judge.alone import judge_alone
from ppl_gen.judge.auxiliary import auxiliary_sites
from ppl_gen.judge.bridge import evidence_of_chains, is_below_bound, lacking, with_gap
from ppl_gen.judge.doubt import errors_beyond_doubt
from ppl_gen.judge.errors import compare
from ppl_gen.judge.evidence import Evidence
from ppl_gen.judge.findings import Assessment, Gate, Judgement, PredictiveFit, Thresholds
from ppl_gen.judge.fits import predictive_fit
from ppl_gen.judge.gates import chains_gate, draws_gate, optimisation_gate
from ppl_gen.judge.joint import (
    MOST_SCALARS,
    Sample,
    dependence_error,
    distance_row,
    distance_table,
    joint_distances,
)
from ppl_gen.judge.labels import labelled_alike
from ppl_gen.judge.marginals import all_marginals, joined, part
from ppl_gen.judge.measure import Measurements, measure, unmeasured, with_methods
from ppl_gen.judge.plain import plain
from ppl_gen.judge.short_chains import ShortChains, short_chains
from ppl_gen.judge.sites import array_of, check_posteriors, worth_of_a_draw
from ppl_gen.judge.verdicts import judge_against, judge_without_draws
from ppl_gen.judge.weights import Weights, weights_of

__all__ = ["assess"]

Array: TypeAlias = NDArray[np.float64]

# Statistics of chains that figures show.
_SHOWN_STATS = ("energy", "diverging", "lp")


def assess(
    posteriors: Mapping[str, Posterior],
    reference: str | None = None,
    *,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - it is frozen
    seed: int = 0,
    progress: bool = False,
) -> Assessment:
    """Judge posteriors of one model on the same data.

    Args:
        posteriors: By name.
        reference: Name of the one that the others are judged by; an approximation may be named,
            and every verdict then says so. None takes the first MCMC posterior, where there is one
            among several; else each is judged on its own.
        thresholds: Where green ends and red begins, and what a reference has to meet.
        seed: Seed of whatever is drawn: the result depends on it and the posteriors alone.
        progress: Whether to show progress.

    Returns:
        All that was found. A posterior without usable draws gets its verdict, and the others
        theirs.

    Raises:
        TypeError: If a value is no posterior, a name no text, or thresholds are none.
        ValueError: If there is no posterior, the reference is none of them, or they are of
            different data or have no site in common.
        SiteError: If a site has different shapes in two posteriors.

    Example:
        >>> draws = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(1))
        >>> chains = Posterior(draws={"mu": draws[0]}, latents=("mu",))
        >>> guide = Posterior(draws={"mu": 1 + draws[1]}, latents=("mu",), is_mcmc=False)
        >>> found = assess({"nuts": chains, "svi": guide})
        >>> found.judgements["svi"].sentence
        'The mean of mu is 0.97 sd too large.'
    """
    if not isinstance(thresholds, Thresholds):
        raise TypeError(
            "thresholds: expected Thresholds, such as Thresholds(mean_red=0.2), got "
            f"{type(thresholds).__name__}."
        )
    if reference is None and isinstance(posteriors, Mapping) and len(posteriors) > 1:
        chains = [name for name, p in posteriors.items() if getattr(p, "is_mcmc", False)]
        reference = chains[0] if chains else None
    check_posteriors(posteriors, reference)
    # Weighing, measuring, and what is done to each posterior after that.
    steps = len(posteriors) * 3
    with ProgressBar("judging", steps, enabled=progress) as bar:
        return _Court(posteriors, reference, thresholds, seed, bar).assess()


class _Court:
    """Collects what is found of each posterior.

    Args:
        posteriors: By name.
        reference: Name of the reference, if there is one.
        thresholds: Where green ends and red begins.
        seed: Seed of whatever is drawn.
        bar: Progress.
    """

    def __init__(
        self,
        posteriors: Mapping[str, Posterior],
        reference: str | None,
        thresholds: Thresholds,
        seed: int,
        bar: ProgressBar,
    ) -> None:
        self.posteriors = posteriors
        self.reference = reference
        self.thresholds = thresholds
        self.seed = seed
        self.bar = bar
        self.not_checked: list[str] = []
        draws = {name: draws_gate(name, posterior) for name, posterior in posteriors.items()}
        self.broken = {name: gate for name, gate in draws.items() if not gate.passed}
        # What can be measured, and against what.
        self.judged = {n: p for n, p in posteriors.items() if n not in self.broken}
        self.target = None if reference in self.broken else reference
        self.weights = {n: w for n, p in self.judged.items() if (w := self._weigh(n, p))}
        self.labels = self._label()
        self.measured = self._measure()
        self.gates = [*draws.values(), *([self.labels] if self.labels else [])]
        serving = {
            site
            for posterior in self.judged.values()
            for site in auxiliary_sites(posterior, self.measured.sites)
        }
        self.auxiliary = np.array(
            [site in serving for site, _ in self.measured.parameters.values()], dtype=bool
        )
        self.names = list(self.measured.parameters)
        self.jointly = self._choose_jointly()

    def assess(self) -> Assessment:
        """Judge them all."""
        found = {name: self._gated(name) for name in self.judged}
        gate = self._reference_gate(found)
        own: Judgement | None = None
        if self.target is not None:
            own = judge_alone(self._alone(found[self.target]))
        if gate is not None and own is not None and gate.passed is None:
            gate = dataclasses.replace(
                gate, sentence=f"{gate.sentence} Its own checks: {own.verdict.value}."
            )
        bridge = self._bridge(gate)
        found = {
            name: dataclasses.replace(each, weights=self.weights.get(name), bridge=bridge)
            for name, each in found.items()
        }
        judgements: dict[str, Judgement] = {}
        distances: dict[str, dict[str, Any]] = {}
        for name, posterior in self.posteriors.items():
            if name in self.broken:
                judgements[name] = judge_without_draws(name, posterior, self.broken[name])
            elif name == self.target and own is not None:
                judgements[name] = own
            elif gate is None:
                judgements[name] = judge_alone(self._alone(found[name]))
            else:
                assert self.reference is not None
                evidence = self._against(found[name], gate, distances)
                target = self.posteriors[self.reference]
                judgements[name] = judge_against(evidence, self.reference, gate, target)
            self.bar.advance()
        return Assessment(
            self.measured,
            self.reference,
            judgements,
            tuple(self.gates),
            distance_table(distances),
            {n: w.findings for n, w in self.weights.items() if len(w.findings.log_weights)},
            self._fits(),
            _histories(self.posteriors),
            _sample_stats(self.posteriors),
            {name: p.warnings for name, p in self.posteriors.items() if p.warnings},
            (*self.not_checked, _UNSEEN),
            self.thresholds,
            {name: plain(dict(p.provenance)) for name, p in self.posteriors.items()},
            {} if bridge is None else {self.target or "": bridge},
        )

    def _weigh(self, name: str, posterior: Posterior) -> Weights | None:
        self.bar.advance()
        if posterior.is_mcmc:
            return None
        try:
            alone = self.reference in (None, name)
            return weights_of(posterior, self.seed, alone=alone)
        except (ValueError, RuntimeError) as error:
            self.not_checked.append(f"Importance weights of {name}: {_reason(error)}")
            return None

    def _label(self) -> Gate | None:
        """Give components the same labels everywhere, also in draws chosen by their weights."""
        self.chosen = {
            name: dataclasses.replace(
                self.judged[name],
                draws={s: torch.tensor(np.asarray(v)) for s, v in weights.chosen.items()},
            )
            for name, weights in self.weights.items()
            if weights.chosen
        }
        if not self.judged:
            return None
        chosen = {f"{name} by weights": posterior for name, posterior in self.chosen.items()}
        labelled, gate = labelled_alike({**self.judged, **chosen}, self.target)
        self.judged = {name: labelled[name] for name in self.judged}
        self.chosen = {name: labelled[f"{name} by weights"] for name in self.chosen}
        return gate

    def _measure(self) -> Measurements:
        if not self.judged:
            return unmeasured(self.posteriors)
        measured = measure(self.judged, self.target, self.thresholds)
        for site, why in measured.left_out.items():
            self.not_checked.append(f"Site {site}: {why}.")
        return with_methods(measured, self.posteriors)

    def _choose_jointly(self) -> NDArray[np.int64]:
        """Return the scalars that are looked at jointly: the worst, and others evenly spread."""
        (counted,) = np.nonzero(~self.auxiliary)
        count = len(counted)
        if count <= MOST_SCALARS:
            return counted
        self.not_checked.append(
            f"Joint distances and correlations of all parameters: {MOST_SCALARS} of {count:,} were "
            "looked at, the worst and some others."
        )
        worst = np.zeros(count)
        for errors in self.measured.errors.values():
            worst = np.maximum(worst, np.nan_to_num(errors.severity[counted], posinf=1e300))
        order = counted[np.argsort(-worst, kind="stable")]
        half = MOST_SCALARS // 2
        rest = order[half:][np.linspace(0, count - half - 1, MOST_SCALARS - half).astype(int)]
        return np.sort(np.concatenate([order[:half], rest]))

    def _gated(self, name: str) -> Evidence:
        """Return what is known of a posterior before anything is compared."""
        posterior = self.posteriors[name]
        table = self.measured.table
        rows = table[table["method"] == name]
        gates: dict[str, Gate] = {}
        optimisation = optimisation_gate(name, posterior)
        if optimisation is not None:
            gates["optimisation"] = optimisation
        if posterior.is_mcmc or name == self.reference:
            kind = "reference" if name == self.reference else "chains"
            gate = chains_gate(
                name,
                posterior,
                rows,
                self.thresholds,
                lambda parameter: self.measured.draws(parameter)[name],
            )
            gates["chains"] = dataclasses.replace(gate, name=kind)
        self.gates += gates.values()
        return Evidence(
            name,
            posterior,
            self.names,
            self.thresholds,
            gates,
            auxiliary=self.auxiliary,
            jointly=[self.names[i] for i in self.jointly],
            weights=self.weights.get(name),
            max_rhat=float(rows["r_hat"].max()),
        )

    def _reference_gate(self, found: Mapping[str, Evidence]) -> Gate | None:
        """Return what was found of the reference; None where there is none."""
        if self.reference is None:
            return None
        if self.reference in self.broken:
            return self.broken[self.reference]
        gate = found[self.reference].gates["chains"]
        if self.labels is not None and self.labels.passed is False:
            return self.labels
        return gate

    def _bridge(self, gate: Gate | None) -> tuple[float, float] | None:
        """Return the log evidence by the reference's chains, where weights of a guide have none."""
        without = lacking(self.weights)
        if self.target is None or gate is None or not gate.passed or not without:
            return None
        if self.labels is not None:
            # Of so many orders of the components its chains may have been in one.
            self.not_checked.append(
                f"Log evidence by {self.target}: labels have no meaning, and of the orders of the "
                "components its chains may have been in a few only."
            )
            return None
        try:
            found = evidence_of_chains(self.posteriors[self.target], self.seed)
        except (ValueError, RuntimeError) as error:
            self.not_checked.append(f"Log evidence by {self.target}: {_reason(error)}")
            return None
        if not found.reliable:
            return None
        below = [name for name in without if is_below_bound(self.posteriors[name], found)]
        if below:
            self.not_checked.append(
                f"Log evidence by {self.target}: {found.log_evidence:.2f} by bridge sampling is "
                f"below the ELBO of {below[0]}, which no log evidence is. Its chains have missed a "
                "part of the posterior, or the two are of different models."
            )
            return None
        for name in without:
            self.weights[name] = with_gap(self.weights[name], self.posteriors[name], found)
        return found.log_evidence, found.error

    def _alone(self, evidence: Evidence) -> Evidence:
        """Add what is found of a posterior without a reference."""
        if evidence.posterior.is_mcmc:
            return evidence
        name, weights = evidence.name, evidence.weights
        weighted, own = self._weighted_marginals(name), None
        if weighted is not None and weights is not None:
            drawn = self.measured.marginals[name]
            if self.labels is None:
                # Of many more draws than are stored.
                drawn = joined([weights.of_guide[site] for site in self.measured.sites])
            own = compare(drawn, weighted, self.thresholds)
        chains = None
        if not evidence.is_point:
            chains = self._short_chains(name, evidence.posterior)
        return dataclasses.replace(evidence, own_errors=own, chains=chains)

    def _short_chains(self, name: str, posterior: Posterior) -> ShortChains | None:
        try:
            return short_chains(posterior, seed=self.seed)
        except (ValueError, RuntimeError) as error:
            self.not_checked.append(f"Short chains from {name}: {_reason(error)}")
            return None

    def _weighted_marginals(self, name: str) -> Marginals | None:
        """Return the marginals of weighted draws, of the scalars that are compared."""
        weights = self.weights.get(name)
        sites = self.measured.sites
        if weights is None or any(site not in weights.marginals for site in sites):
            return None
        if self.labels is None:
            return joined([weights.marginals[site] for site in sites])
        draws = {site: array_of(self.chosen[name].draws[site]) for site in sites}
        found = all_marginals(draws, is_mcmc=False)
        stretch = 1 / math.sqrt(weights.worth)
        return dataclasses.replace(
            found,
            mean_error=stretch * found.mean_error,
            log_sd_error=stretch * found.log_sd_error,
            quantile_errors=stretch * found.quantile_errors,
        )

    def _against(
        self, evidence: Evidence, gate: Gate, distances: dict[str, dict[str, Any]]
    ) -> Evidence:
        """Add what is found of a posterior against the reference, and its row of distances."""
        name, target = evidence.name, self.target
        if target is None or self.posteriors[target].is_point:
            return evidence
        marginals = self.measured.marginals
        evidence = dataclasses.replace(evidence, errors=self.measured.errors[name])
        if gate.passed is False:
            draws = {site: values[target] for site, values in self.measured.sites.items()}
            doubtful = errors_beyond_doubt(
                marginals[name], marginals[target], draws, self.thresholds
            )
            evidence = dataclasses.replace(evidence, doubtful=doubtful)
        if evidence.is_point:
            return evidence
        reference = self._sample(self.judged[target])
        sample = self._sample(self.judged[name])
        dependence = dependence_error(sample, reference)
        joint = joint_distances(
            sample,
            reference,
            part(marginals[name], self.jointly),
            part(marginals[target], self.jointly),
            self.seed,
        )
        if not joint:
            self.not_checked.append(f"Joint distances of {name}: too few independent draws.")
        distances[name] = distance_row(joint, dependence, evidence.jointly)
        weighted = self._weighted_marginals(name)
        mended = of_mended = None
        if weighted is not None and evidence.weights is not None and evidence.weights.can_mend:
            mended = compare(weighted, marginals[target], self.thresholds)
            chosen = self._sample(self.chosen[name], evidence.weights.worth)
            of_mended = dependence_error(chosen, reference)
        return dataclasses.replace(
            evidence,
            dependence=dependence,
            classifier=joint.get("c2st"),
            weighted_errors=mended,
            weighted_dependence=of_mended,
        )

    def _sample(self, posterior: Posterior, worth: float = 1.0) -> Sample:
        """Return the draws of the scalars that are looked at jointly."""
        places = list(self.measured.parameters.values())
        arrays = {site: array_of(posterior.draws[site]) for site in self.measured.sites}
        columns = [
            arrays[site][(slice(None), slice(None), *index)]
            for site, index in (places[i] for i in self.jointly)
        ]
        worth = min(worth, worth_of_a_draw(posterior))
        return Sample(np.stack(columns, axis=2).astype(np.float64), posterior.is_mcmc, worth)

    def _fits(self) -> dict[str, PredictiveFit]:
        fits, reasons = {}, dict[str, list[str]]()
        for name in self.judged:
            try:
                fits[name] = predictive_fit(self.posteriors[name], self.seed)
            except (ValueError, RuntimeError) as error:
                reasons.setdefault(_reason(error), []).append(name)
            self.bar.advance()
        for reason, names in reasons.items():
            self.not_checked.append(f"Predictions of {', '.join(names)}: {reason}")
        return fits


# What no check of draws can find.
_UNSEEN = (
    "Parts of the posterior that no method reached, such as another mode: no check of draws can "
    "see them."
)


def _reason(error: Exception) -> str:
    """Return the first lines of an error as a sentence."""
    text = " ".join(str(error).split()).removeprefix("no importance weights: ")
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return text if text.endswith(".") else f"{text}."


def _histories(posteriors: Mapping[str, Posterior]) -> dict[str, Array]:
    return {
        name: p.history.detach().cpu().double().numpy()
        for name, p in posteriors.items()
        if p.history is not None and p.history.numel()
    }


def _sample_stats(posteriors: Mapping[str, Posterior]) -> dict[str, dict[str, Array]]:
    return {
        name: {
            stat: p.sample_stats[stat].detach().cpu().double().numpy()
            for stat in _SHOWN_STATS
            if stat in p.sample_stats
        }
        for name, p in posteriors.items()
        if p.is_mcmc
    }
