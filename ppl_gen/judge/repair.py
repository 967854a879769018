"""Mending a posterior that cannot be trusted: better and better methods, each judged anew."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ppl_gen.core import Posterior
from ppl_gen.core.errors import SiteError
from ppl_gen.core.pair import as_pair
from ppl_gen.core.progress import announced
from ppl_gen.core.scope import isolated
from ppl_gen.core.structure import trace_sites
from ppl_gen.diagnostics import rhat
from ppl_gen.judge.assess import assess
from ppl_gen.judge.deadline import Deadline
from ppl_gen.judge.findings import Judgement, Thresholds, Verdict
from ppl_gen.judge.rungs import LADDER, Attempt, Ground, Skip, Step, guide_of

__all__ = ["Climb", "Repair", "Rung", "repair"]

# Verdicts from the best on; those that are not here are all the same.
_ORDER = {
    Verdict.TRUST: 4,
    Verdict.NO_PROBLEM_FOUND: 4,
    Verdict.AFTER_REWEIGHTING: 3,
    Verdict.MEANS_ONLY: 2,
}
_TRUSTED = 4
# Of the time that is left, so much is for one rung.
_SHARE = 0.5
_LONGER = "optimise longer"
# What the lines of code may need.
_IMPORTED = ("NUTS", "SVI", "NeuTra", "non_centred")
# Each has twice as many draws as there were.
_MOST_EXTENSIONS = 2
# Chains that agree so far are nearer to the posterior than an approximation that is refused.
_ROUGH_RHAT = 1.1


@dataclass(frozen=True)
class Rung:
    """One attempt to mend a posterior.

    Args:
        name: The rung, such as "full rank".
        action: The line of code that does the same.
        seconds: How long it took, judging included.
        judgement: The verdict on what came of it; None where nothing did.
        kept: Whether it was better than what there was.
        note: Why it does not apply, or has failed, or that it was stopped; else empty.
    """

    name: str
    action: str
    seconds: float
    judgement: Judgement | None
    kept: bool
    note: str = ""


@dataclass(frozen=True, eq=False)
class Repair:
    """What a repair has done.

    Args:
        posterior: The best posterior; the one that was given where nothing was better.
        before: The verdict on the one that was given.
        after: The verdict on the best one.
        rungs: What was tried, and what does not apply, in order.
        reason: Why it ended.
        seconds: How long it took, but for the first verdict.
    """

    posterior: Posterior
    before: Judgement
    after: Judgement
    rungs: tuple[Rung, ...]
    reason: str
    seconds: float

    @property
    def trusted(self) -> bool:
        """Whether no problem is left that the checks can find."""
        return _level(self.after) == _TRUSTED

    @property
    def changed(self) -> bool:
        """Whether the posterior is another one than was given."""
        return any(rung.kept for rung in self.rungs)

    @property
    def action(self) -> str:
        """The lines of code that lead from the posterior that was given to this one.

        They need `pg`, `pair`, `data` and `posterior`.
        """
        lines = [rung.action for rung in self.rungs if rung.kept]
        needed = [name for name in _IMPORTED if any(f"{name}(" in line for line in lines)]
        imports = [f"from ppl_gen.inference import {', '.join(needed)}"] if needed else []
        return "\n".join([*imports, *lines])

    def __str__(self) -> str:
        """Return what was tried, in a table, with what came of it."""
        lines = [f"Before: {_verdict(self.before)}"]
        lines += [_line(rung) for rung in self.rungs if rung.action]
        left_out = [f"{rung.name} ({rung.note})" for rung in self.rungs if not rung.action]
        if left_out:
            lines.append(f"Left out: {'; '.join(left_out)}.")
        lines.append(f"After:  {_verdict(self.after)}")
        lines.append(f"{self.reason} It took {self.seconds:.1f} s.")
        if self.changed:
            lines += ["To do the same:", *(f"  {line}" for line in self.action.splitlines())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return verdicts and rungs as plain data, for JSON."""

        def plain(judgement: Judgement | None) -> dict[str, Any] | None:
            if judgement is None:
                return None
            return {
                "verdict": judgement.verdict.value,
                "sentence": judgement.sentence,
                "action": judgement.action,
            }

        return {
            "before": plain(self.before),
            "after": plain(self.after),
            "reason": self.reason,
            "seconds": self.seconds,
            "rungs": [
                {
                    "name": rung.name,
                    "action": rung.action,
                    "seconds": rung.seconds,
                    "judgement": plain(rung.judgement),
                    "kept": rung.kept,
                    "note": rung.note,
                }
                for rung in self.rungs
            ],
        }


def repair(
    pair: Any,
    data: Mapping[str, Any],
    posterior: Posterior,
    *,
    seconds: float = 120.0,
    seed: int = 0,
    progress: bool = True,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - it is frozen
) -> Repair:
    """Try better and better methods until one of them can be trusted.

    The rungs of the ladder: optimise longer, non-centre the hierarchy, a low-rank, a full-rank and
    a flow guide, reweighting (at once, where a verdict asks for it), linear response, NUTS started
    from the best so far, NUTS on the noise of a flow (NeuTra), and NUTS with patience. Each is
    judged by itself, without a reference; the best is kept, and chains that are not good enough
    yet go on for longer first. Rungs that do not apply are told.

    Args:
        pair: The pair, or a Pyro function. Parameters that were trained are those of the
            posterior's own copy.
        data: The data by name, all of them.
        posterior: The posterior to mend, of that pair and data.
        seconds: How long it may take, judging included, from when the posterior was judged first.
            No rung but the last may take more than half of what is left. Chains that run for longer
            are stopped, and what they have is judged; any other fit is given up.
        seed: Seed of every fit.
        progress: Whether to say what is going on, and what came of it.
        thresholds: What the verdicts go by.

    Returns:
        The best posterior, with what was tried. After Ctrl-C, what was best by then.

    Raises:
        ValueError: If the posterior holds no draws, such as one of local latents, or is not of that
            pair and data.

    Example:
        >>> from ppl_gen import fit
        >>> from ppl_gen.inference import SVI
        >>> from ppl_gen.models import EightSchools
        >>> pair, data = EightSchools(centered=True), EightSchools.data()
        >>> poor = fit(pair, data, SVI(guide="mean_field"), progress=False)
        >>> mended = repair(pair, data, poor, progress=False)
        >>> mended.before.verdict.value, mended.trusted
        ('DO NOT TRUST', True)
    """
    if not 0 < seconds:
        msg = f"seconds: expected a positive number, got {seconds}."
        raise ValueError(msg)
    ground = _ground(pair, data, posterior, seed)
    # An interrupt may come where a fit puts back what it has set.
    with isolated(seed):
        climb = Climb(ground, seconds, partial(_judge, thresholds, seed), progress=progress)
        climb.run()
    return climb.result()


def _judge(thresholds: Thresholds, seed: int, name: str, posterior: Posterior) -> Judgement:
    # The lines of code call each one `posterior`.
    found = assess({"posterior": posterior}, thresholds=thresholds, seed=seed)
    return replace(found.judgements["posterior"], method=name)


class Climb:
    """The climb of the ladder.

    Args:
        ground: Where it starts.
        seconds: The budget.
        judge: Returns the verdict on a posterior, by the name of the rung that it is from.
        ladder: The rungs by name.
        progress: Whether to say what is going on.
    """

    def __init__(
        self,
        ground: Ground,
        seconds: float,
        judge: Callable[[str, Posterior], Judgement],
        ladder: Mapping[str, Step] = LADDER,
        *,
        progress: bool = False,
    ) -> None:
        self.ground = ground
        self.seconds = seconds
        self.judge = judge
        self.ladder = ladder
        self.progress = progress
        self.rungs: list[Rung] = []
        self.reason = ""
        self.before = self.after = judge("posterior", ground.posterior)
        self.started = time.perf_counter()

    def run(self) -> None:
        """Climb until a posterior can be trusted, or the time is up."""
        if _level(self.after) == _TRUSTED:
            self.reason = "Nothing was wrong with it, as far as these checks tell."
        left = list(self.ladder)
        reweighted: Posterior | None = None
        extended = 0
        while left and not self.reason:
            name = left.pop(0)
            asks = self.after.action.endswith(".reweight()")
            if asks and name != "reweight" and reweighted is not self.ground.posterior:
                left.insert(0, name)
                name = "reweight"
            if name == "reweight":
                if reweighted is self.ground.posterior:
                    continue
                reweighted = self.ground.posterior
            self._climb_on(name, last=not left)
            # Chains that are not good enough yet go on first: there is nothing quicker.
            extended = extended + 1 if name == _LONGER else 0
            if self._can_go_on() and extended < _MOST_EXTENSIONS:
                left.insert(0, _LONGER)
        self.reason = self.reason or "No rung is left."

    def _can_go_on(self) -> bool:
        """Whether the last rung left chains that are the best so far, and can be gone on with."""
        best = self.ground.posterior
        kept = bool(self.rungs) and self.rungs[-1].kept
        return kept and best.is_mcmc and bool(best.checkpoint) and _LONGER in self.ladder

    def result(self) -> Repair:
        """Return what came of it."""
        return Repair(
            self.ground.posterior,
            self.before,
            self.after,
            tuple(self.rungs),
            self.reason,
            time.perf_counter() - self.started,
        )

    def _climb_on(self, name: str, *, last: bool) -> None:
        """Try one rung; only the last one may take all of the time that is left."""
        began = time.perf_counter()
        limit = (self.seconds - (began - self.started)) * (1.0 if last else _SHARE)
        deadline = Deadline(limit)
        attempt: Attempt | None = None
        judgement, kept, note, by_user, judging = None, False, "", False, False
        try:
            attempt = self.ladder[name](self.ground)
            with announced(f"repair: {name}", enabled=self.progress):
                with deadline:
                    posterior = attempt.run()
                by_user = posterior.interrupted and not deadline.passed
                if posterior.interrupted and deadline.passed:
                    note = f"stopped after {limit:.0f} s, which its line of code is not"
                if name == "flow":
                    self.ground.flow = posterior
                judging = True
                judgement = self.judge(name, posterior)
            kept = self._is_better(posterior, judgement)
            if kept:
                self._keep(attempt, posterior, judgement)
        except Skip as reason:
            note = str(reason).removesuffix(".")
        except (ValueError, RuntimeError, ArithmeticError) as error:
            note = f"failed: {error}"
        except KeyboardInterrupt:
            by_user = judging or not deadline.passed
            note = "interrupted" if by_user else f"given up after {limit:.0f} s"
        spent = time.perf_counter() - began
        action = "" if attempt is None else attempt.action
        self.rungs.append(Rung(name, action, spent, judgement, kept, note))
        if self.progress and attempt is not None:
            print(_line(self.rungs[-1]), file=sys.stderr)
        if _level(self.after) == _TRUSTED:
            self.reason = f"After {name} these checks find no problem."
        elif by_user:
            self.reason = "It was interrupted."
        elif time.perf_counter() - self.started >= self.seconds:
            self.reason = f"The {self.seconds:g} s are up."

    def _is_better(self, posterior: Posterior, judgement: Judgement) -> bool:
        """Whether a posterior is better than the best so far.

        By its verdict; where neither can be used, chains that agree roughly are better than an
        approximation, and of two approximations the one of the better bound.
        """
        best = self.ground.posterior
        if _level(judgement) != _level(self.after):
            return _level(judgement) > _level(self.after)
        if posterior.is_mcmc:
            rough = _largest_rhat(posterior)
            return rough < (_largest_rhat(best) if best.is_mcmc else _ROUGH_RHAT)
        if best.is_mcmc or posterior.elbo is None or best.elbo is None:
            return False
        (bound, error), (before, its_error) = posterior.elbo, best.elbo
        return bool(bound - before > 2 * np.hypot(error, its_error))

    def _keep(self, attempt: Attempt, posterior: Posterior, judgement: Judgement) -> None:
        ground = self.ground
        if attempt.pair is not None:
            ground = replace(ground, pair=attempt.pair, tried={guide_of(posterior)})
        if posterior.pair is not None and (attempt.pair is not None or ground.text != "pair"):
            # One that was rewritten or trained: the posterior has it.
            flow = ground.flow if ground.flow is posterior else None
            ground = replace(ground, pair=posterior.pair, text="posterior.pair", flow=flow)
        self.ground = replace(ground, posterior=posterior)
        self.after = judgement


def _ground(pair: Any, data: Mapping[str, Any], posterior: Posterior, seed: int) -> Ground:
    """Return where a repair starts, with what is given checked."""
    if not posterior.draws or posterior.local_plate is not None:
        plate = f" of plate '{posterior.local_plate}'" if posterior.local_plate else ""
        msg = (
            f"posterior: expected one with draws of all latents, got one whose latents{plate} are "
            "drawn for rows of data. Take a few rows: pg.repair(pair, rows, "
            "posterior.sample(rows))."
        )
        raise ValueError(msg)
    module, text = as_pair(pair), "pair"
    if posterior.pair is not None and any(True for _ in posterior.pair.parameters()):
        module, text = posterior.pair, "posterior.pair"
    own = replace(posterior, pair=module)
    with isolated(seed, own._dtype):
        sites = trace_sites(*own._prepared(data))
    for name in posterior.latents:
        expected = tuple(posterior.draws[name].shape[2:])
        if name not in sites or sites[name].shape != expected:
            raise SiteError(
                name,
                expected=f"a site of shape {expected}, as the posterior has it",
                got=f"shape {sites[name].shape}" if name in sites else "no such site",
                remedy="Give the pair and the data that the posterior was fitted with.",
            )
    return Ground(module, text, data, posterior, seed, tried={guide_of(posterior)})


def _level(judgement: Judgement) -> int:
    return _ORDER.get(judgement.verdict, 0)


def _largest_rhat(posterior: Posterior) -> float:
    """Return the largest R-hat of the latent sites' scalars."""
    found = [
        np.max(rhat(posterior.draws[name].double().numpy()))
        for name in posterior.latents
        if posterior.draws[name].numel()
    ]
    return float(np.nan_to_num(max(found, default=np.inf), nan=np.inf))


def _verdict(judgement: Judgement) -> str:
    return f"{judgement.verdict.value}: {judgement.sentence}"


def _line(rung: Rung) -> str:
    """Return a rung in one line."""
    came = rung.note if rung.judgement is None else _verdict(rung.judgement)
    kept = ", kept" if rung.kept else ""
    stopped = f", {rung.note}" if rung.judgement is not None and rung.note else ""
    return f"  {rung.name} ({rung.seconds:.1f} s{kept}{stopped}): {came}"
