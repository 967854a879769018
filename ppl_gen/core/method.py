"""The contract between `fit` and the inference methods."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from ppl_gen.core.loader import BatchStream
    from ppl_gen.core.posterior import Posterior

__all__ = ["Guide", "GuideDraws", "Method", "Problem", "Result"]


@dataclass(frozen=True)
class Problem:
    """What a method is given to work on.

    Args:
        pair: A copy of the pair, which the method may train.
        data: The data by name, checked.
        device: Where to run.
        seed: The seed, set already.
        progress: Whether to show a progress bar.
        out: A folder that is not there yet, to write draws to as they are made; a method that
            cannot do so leaves it alone.
        identity: What the folder is to remember of the problem, for `resume`.
        previous: The posterior of an earlier part of the same run, to go on from.
        loader: What gives mini-batches, if the data do; `data` are then the first of them.
        prepared: Whether the data went through the pair's `prepare` already.
        facts: What is known for the posterior's provenance before the run.
        started: Reading of `time.perf_counter` at which the user began to wait.
    """

    pair: nn.Module
    data: Mapping[str, Any]
    device: torch.device
    seed: int
    progress: bool
    out: Path | None = None
    identity: Mapping[str, Any] | None = None
    previous: Posterior | None = None
    loader: BatchStream | None = None
    prepared: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class GuideDraws:
    """Draws of a guide, with what importance weights need.

    Args:
        values: Values of the latent sites by name, (draw, *site).
        log_prob: Log joint density of model and data at each draw, (draw,).
        log_q: Log density of the guide at each draw, in the same space, (draw,); None of a point,
            which has none.
    """

    values: dict[str, torch.Tensor]
    log_prob: torch.Tensor
    log_q: torch.Tensor | None

    @property
    def stats(self) -> dict[str, torch.Tensor]:
        """The densities as statistics of each draw, (draw,)."""
        of_guide = {} if self.log_q is None else {"log_q": self.log_q}
        return {"lp": self.log_prob, **of_guide}

    @property
    def elbo(self) -> tuple[float, float] | None:
        """The evidence lower bound and the Monte Carlo standard error of its estimate, if any."""
        if self.log_q is None:
            return None
        ratio = self.log_prob - self.log_q
        error = float(ratio.std()) / len(ratio) ** 0.5 if len(ratio) > 1 else float("nan")
        return float(ratio.mean()), error


class Guide(Protocol):
    """An approximation that can be drawn from: what SVI leaves behind.

    It is a module whose state is tensors only and whose constructor arguments, kept under their
    own names, are JSON values.
    """

    def draw(self, pair: nn.Module, data: Mapping[str, Any], draws: int) -> GuideDraws:
        """Return draws of the latent sites that the data has, which are prepared already."""
        ...


@dataclass
class Result:
    """What a method returns.

    Args:
        draws: Draws of the latent sites, (chain, draw, *site); of a method that writes them to a
            folder as they are made, deterministic sites among them.
        latents: Names of the latent sites among the draws; None: all.
        sample_stats: One number for each draw, by ArviZ's names, (chain, draw).
        data: The data that the draws belong to: prepared, and where it is stored.
        local_plate: Name of the mini-batched plate whose latent sites are not among the draws, if
            there are such: then the data, which may be very many, need not be prepared.
        few: A few rows of mini-batched data, to look at the sites on; not prepared.
        guide: The guide, for a variational method.
        history: The loss after each step, for a variational method, (step,).
        elbo: Estimate of the evidence lower bound and its Monte Carlo standard error.
        gradient_evaluations: Number of gradients of the log joint density.
        interrupted: Whether the user stopped it early.
        failure: Why it had to stop, where it had to.
        dtype: What it computed in.
        divergences: Where trajectories diverged, by site, (divergence, *site).
        divergence_chain: The chain of each, (divergence,).
        checkpoint: Where its chains are, for `Posterior.extend`.
        warnings: What the user should know about the run, in plain words.
        facts: More for the posterior's provenance.
    """

    draws: Mapping[str, torch.Tensor]
    latents: tuple[str, ...] | None = None
    sample_stats: Mapping[str, torch.Tensor] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    local_plate: str | None = None
    few: Mapping[str, Any] | None = None
    guide: nn.Module | None = None
    history: torch.Tensor | None = None
    elbo: tuple[float, float] | None = None
    gradient_evaluations: int = 0
    interrupted: bool = False
    failure: str | None = None
    dtype: torch.dtype = torch.float64
    divergences: Mapping[str, torch.Tensor] = field(default_factory=dict)
    divergence_chain: torch.Tensor | None = None
    checkpoint: Mapping[str, torch.Tensor] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """An inference method: a frozen dataclass of options with one entry point.

    One that takes the data of a loader says so by an attribute `takes_batches` that is true.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def is_mcmc(self) -> bool:
        """Whether its draws are Markov chains, which R-hat and ESS speak of."""
        ...

    def run(self, problem: Problem) -> Result:
        """Draw from the posterior of the problem, or from an approximation of it."""
        ...
