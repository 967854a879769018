"""A normalising flow as a guide: a normal distribution bent by neural splines.

The flow starts as the identity on the coordinates of a fitted normal guide, so that it starts as
good as that guide, and a state that is no better than it on the same noise is never kept.

References:
    Neural Spline Flows. Durkan, Bekasov, Murray and Papamakarios, 2019. arXiv:1906.04032.
    Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference.
    Roeder, Wu and Duvenaud, 2017. arXiv:1703.09194.
    Disentangling impact of capacity, objective, batchsize, estimators, and step-size on flow VI.
    Agrawal and Domke, 2024. arXiv:2412.08824.
    Robust, Automated, and Accurate Black-box Variational Inference. Welandawe, Andersen, Vehtari
    and Huggins, 2022. arXiv:2203.15945: the averaged iterates and the falling step size; here the
    stages end by the bound itself, on common noise, and not by the iterates' R-hat, which
    parameters of networks, that can stand for the same function in many ways, need not pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppl_gen.core.evaluation import Evaluate
from ppl_gen.core.scope import default_dtype, seeded
from ppl_gen.inference.vi.families import Normal
from ppl_gen.inference.vi.noise import standard_noise
from ppl_gen.inference.vi.vector_guide import VectorGuide

__all__ = ["FlowFit", "FlowGuide", "fit_flow", "import_zuko"]

_LAYERS = 4
_BINS = 8
_HIDDEN = 32

# Draws of a step, and steps between two looks at the bound.
_BATCH = 128
_WINDOW = 100
_MOST_WINDOWS = 30
# Draws that states are compared on, and sets of as many that the last bound is taken over.
_HELD_OUT = 2048
_FRESH_SETS = 8
# Sizes of Adam's steps: from bold to fine.
_RATES = (1e-2, 3e-3, 1e-3, 3e-4)
# A window that gains less, in nats, is the last of its step size; and a step size that gains less
# in all, the last one.
_LEAST_GAIN = 0.01

_STOPPED = (
    "The flow was stopped after {} steps, while its bound still rose: by {:.2g} nats in the last "
    "window of steps. It is a valid guide, but not yet as good as a flow can be."
)
_NO_BOUND = (
    "No flow was fitted: the log density is not finite at some draws of the normal guide that it "
    "starts from, so that there is no bound to raise. The guide is that normal."
)


def import_zuko() -> Any:
    """Return the package zuko, imported without what its import changes for everyone.

    It switches off the validation of arguments of all of PyTorch's and Pyro's distributions, and
    renames a class of PyTorch. The method `call_and_ladj` that it adds to PyTorch's transforms
    stays, which zuko needs and nobody else has.
    """
    with _distributions_unchanged():
        import zuko
    return zuko


@contextmanager
def _distributions_unchanged() -> Iterator[None]:
    from torch.distributions import Distribution, transforms

    inverse = transforms._InverseTransform
    name = inverse.__name__
    kept = {key: vars(Distribution)[key] for key in ("_validate_args", "arg_constraints")}
    try:
        yield
    finally:
        inverse.__name__ = name
        for key, value in kept.items():
            setattr(Distribution, key, value)


class FlowGuide(VectorGuide):
    """A normal distribution over the vector of a `LogDensity`, bent by coupling layers.

    Each layer moves about half of the coordinates by monotonic splines and shifts and scales them,
    as a network says that reads the other half. The splines end at 5 standard deviations. Of a
    single coordinate there is no other half: its layers are splines of fixed shapes.

    Args:
        dim: Length of the vector.
        family: That of the normal distribution: "mean_field" or "full_rank".
        layers: Number of layers.
        bins: Pieces of each spline.
        hidden: Width of the networks' two hidden layers.

    Example:
        >>> FlowGuide(3).rsample(5).shape
        torch.Size([5, 3])
    """

    scale: torch.Tensor

    def __init__(
        self,
        dim: int,
        family: Literal["mean_field", "full_rank"] = "full_rank",
        layers: int = _LAYERS,
        bins: int = _BINS,
        hidden: int = _HIDDEN,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.family = family
        self.layers = layers
        self.bins = bins
        self.hidden = hidden
        number = torch.float64
        self.register_buffer("loc", torch.zeros(dim, dtype=number))
        scale = torch.ones(dim, dtype=number)
        self.register_buffer("scale", scale if family == "mean_field" else scale.diag())
        zuko = import_zuko()
        with default_dtype(number):
            parts = [_layer(zuko, index, dim, bins, hidden) for index in range(layers)]
        self.bends = zuko.lazy.LazyComposedTransform(*parts)
        self.straighten()

    @classmethod
    def of(cls, normal: Normal) -> FlowGuide:
        """Return the guide that is a normal distribution still."""
        family: Any = "mean_field" if normal.factor.ndim == 1 else "full_rank"
        guide = cls(normal.dim, family, layers=_LAYERS if normal.dim > 1 else 2)
        guide.loc.copy_(torch.from_numpy(normal.mean))
        guide.scale.copy_(torch.from_numpy(normal.factor))
        return guide

    @torch.no_grad()
    def straighten(self) -> None:
        """Make the flow the identity, exactly."""
        for layer in self.bends.transforms:
            last = layer.hyper[-1] if hasattr(layer, "hyper") else layer
            for parameter in last.parameters():
                parameter.zero_()

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the vectors that noise becomes, (n, dim) to (n, dim)."""
        return self._scaled(self.bends()(noise))

    def forward_and_log_prob(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors that noise becomes, (n, dim), and their log densities, (n,)."""
        bent, log_det = self.bends().call_and_ladj(noise)
        return self._scaled(bent), self._log_prob(noise, log_det)

    def rsample(self, draws: int) -> torch.Tensor:
        """Return reparametrised draws, (draws, dim)."""
        noise = torch.randn(draws, self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return self.forward(noise)

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log density of vectors, (n, dim) to (n,)."""
        bent = vectors - self.loc
        if self.family == "mean_field":
            bent = bent / self.scale
        else:
            bent = torch.linalg.solve_triangular(self.scale, bent.mT, upper=False).mT
        log_det = bent.new_zeros(len(bent))
        for layer in reversed(self.bends().transforms):
            bent, of_layer = _undone(layer, bent)
            log_det = log_det + of_layer
        return self._log_prob(bent, log_det)

    def _scaled(self, bent: torch.Tensor) -> torch.Tensor:
        vectors = bent * self.scale if self.family == "mean_field" else bent @ self.scale.mT
        return self.loc + vectors

    def _log_prob(self, noise: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
        constant = 0.5 * self.dim * math.log(2.0 * math.pi)
        diagonal = self.scale if self.family == "mean_field" else self.scale.diagonal()
        return -0.5 * noise.square().sum(-1) - constant - log_det - diagonal.log().sum()


def _layer(zuko: Any, index: int, dim: int, bins: int, hidden: int) -> nn.Module:
    """Return a coupling layer; of any two coordinates some layers move one by the other."""
    bit, half = divmod(index, 2)
    digits = max(1, math.ceil(math.log2(dim)))
    mask = (torch.arange(dim) >> bit % digits) % 2 == half
    layer: nn.Module = zuko.flows.coupling.GeneralCouplingTransform(
        dim,
        mask=mask,
        univariate=_bend,
        shapes=[(bins,), (bins,), (bins - 1,), (), ()],
        hidden_features=(hidden, hidden),
        activation=nn.ELU,
    )
    return layer


def _undone(layer: Any, bent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a layer bent, and the logarithm of its determinant; asking its network once."""
    if not hasattr(layer, "split"):
        straight = layer.inv(bent)
        return straight, layer.call_and_ladj(straight)[1]
    fixed, moved = layer.split(bent)
    bend = layer.meta(fixed)
    moved = bend.inv(moved)
    return layer.merge(fixed, moved, bent.shape), bend.call_and_ladj(moved)[1]


def _bend(
    widths: torch.Tensor,
    heights: torch.Tensor,
    slopes: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
) -> Any:
    """Return a spline, shifted and scaled; the identity where all of its parameters are 0."""
    transforms = import_zuko().transforms
    return transforms.ComposedTransform(
        transforms.MonotonicRQSTransform(widths, heights, slopes),
        transforms.MonotonicAffineTransform(shift, scale),
    )


@dataclass
class FlowFit:
    """A flow that was fitted.

    Args:
        guide: The guide.
        elbo: The bound and its Monte Carlo standard error, from fresh noise.
        lead: How far it is above that of the normal guide, on the same noise, and the standard
            error of this difference.
        converged: Whether there is nothing left to gain, by the ratios of the densities or by
            finer steps.
        reason: Why it has not converged, in plain words.
        history: The negative bound after each window of steps.
        evaluations: Number of gradients of the log density.
    """

    guide: FlowGuide
    elbo: tuple[float, float]
    lead: tuple[float, float]
    converged: bool
    reason: str = ""
    history: list[float] = field(default_factory=list)
    evaluations: int = 0


def fit_flow(
    evaluate: Evaluate,
    normal: Normal,
    generator: np.random.Generator,
    *,
    most_windows: int = _MOST_WINDOWS,
    report: Callable[[str], None] = lambda text: None,
) -> FlowFit:
    """Fit a flow by maximising the evidence lower bound.

    Adam climbs along path gradients, whose noise vanishes where the flow is exact. After each
    window of steps the average of its iterates is compared with the best one so far, on noise that
    is kept for that. A window that gains too little ends its step size, and the next smaller one
    starts from the best average: what was too bold for the posterior at hand costs a window. Where
    the log densities' ratios hardly vary there is nothing left to gain.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of unconstrained vectors (n, dim).
        normal: The normal guide to start from, its factor diagonal or lower triangular.
        generator: Where the noise comes from.
        most_windows: Windows of 100 steps at most.
        report: Told about each window.
    """
    with seeded(int(generator.integers(2**31))):
        guide = FlowGuide.of(normal)
    climb = _Climb(evaluate, guide, generator)
    held_out = torch.from_numpy(standard_noise(generator, _HELD_OUT, guide.dim))
    straight = best = climb.state()
    first = highest = before = climb.ratios(held_out)
    history = [-float(first.mean())]
    rates = list(_RATES)
    converged, gain = _gap(highest) <= _LEAST_GAIN, math.nan
    bounded = bool(first.isfinite().all())
    while bounded and not converged and len(history) <= most_windows:
        average = climb.window(rates[0])
        last = climb.state()
        climb.move_to(average)
        reached = climb.ratios(held_out)
        history.append(-float(reached.mean()))
        report(f"step size {rates[0]:g}, ELBO {-history[-1]:.5g}")
        gain = float((reached - highest).mean())
        if gain > 2 * _error(reached - highest):
            best, highest = average, reached
        if _gap(highest) <= _LEAST_GAIN:
            converged = True
        if gain > _LEAST_GAIN:
            climb.move_to(last)
            continue
        # Steps of a third do not gain more than the last ones did, once they are not too bold.
        gain_of_rate = float((highest - before).mean())
        found_way = float((before - first).mean()) > _LEAST_GAIN
        del rates[0]
        if not rates or (found_way and gain_of_rate <= _LEAST_GAIN):
            converged = True
        before = highest
        climb.move_to(best)
        climb.halt()
    elbo, lead = climb.compare(best, straight)
    if lead[0] < -2 * lead[1] or not math.isfinite(elbo[0]):
        elbo, lead = climb.compare(straight, straight)
    reason = ""
    if not converged:
        reason = _STOPPED.format(_WINDOW * most_windows, gain) if bounded else _NO_BOUND
    return FlowFit(guide, elbo, lead, converged, reason, history, climb.evaluations)


class _Climb:
    """The states of a flow's parameters, steps between them, and how good they are.

    Args:
        evaluate: Of the log density.
        guide: The flow.
        generator: Where the noise comes from.
    """

    def __init__(
        self, evaluate: Evaluate, guide: FlowGuide, generator: np.random.Generator
    ) -> None:
        self.evaluate = evaluate
        self.guide = guide
        self.generator = generator
        self.parameters = list(guide.bends.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, fused=True)
        self.evaluations = 0

    def state(self) -> torch.Tensor:
        """Return all parameters in one vector."""
        return parameters_to_vector(self.parameters).detach().clone()

    def move_to(self, state: torch.Tensor) -> None:
        """Set all parameters."""
        vector_to_parameters(state.clone(), self.parameters)

    def halt(self) -> None:
        """Forget where the steps were heading."""
        for moments in self.optimizer.state.values():
            moments["exp_avg"].zero_()

    def window(self, rate: float) -> torch.Tensor:
        """Make a window of steps and return the average over its second half."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        late = torch.zeros_like(self.state())
        for step in range(_WINDOW):
            self._step()
            if step >= _WINDOW // 2:
                late += self.state()
        return late / (_WINDOW - _WINDOW // 2)

    def _step(self) -> None:
        noise = standard_noise(self.generator, _BATCH, self.guide.dim)
        vectors = self.guide(torch.from_numpy(noise))
        self.evaluations += _BATCH
        # Of log q only the slope along the draws counts: its gradient in the parameters has mean
        # zero at fixed draws, and would add nothing but noise.
        leaf = vectors.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(self.guide.log_prob(leaf).sum(), leaf)
        _, gradients = self.evaluate(leaf.detach())
        uphill = gradients - slopes
        # A draw at which a density breaks down says nothing of where to go.
        usable = torch.isfinite(uphill).all(1, keepdim=True)
        self.optimizer.zero_grad()
        vectors.backward(-torch.where(usable, uphill, 0.0) / _BATCH)
        self.optimizer.step()

    def ratios(self, noise: torch.Tensor) -> torch.Tensor:
        """Return log densities of the posterior above those of the guide at its draws, (n,)."""
        with torch.no_grad():
            vectors, log_q = self.guide.forward_and_log_prob(noise)
        self.evaluations += len(noise)
        return self.evaluate(vectors)[0] - log_q

    def compare(
        self, state: torch.Tensor, other: torch.Tensor
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the bound of a state and its lead over another's, each with its standard error.

        The flow is left in the first state.
        """
        sets = [
            torch.from_numpy(standard_noise(self.generator, _HELD_OUT, self.guide.dim))
            for _ in range(_FRESH_SETS)
        ]
        bounds = []
        for one in (other, state):
            self.move_to(one)
            bounds.append(torch.stack([self.ratios(noise).mean() for noise in sets]))
        lead = bounds[1] - bounds[0]
        return (float(bounds[1].mean()), _error(bounds[1])), (float(lead.mean()), _error(lead))


def _gap(ratios: torch.Tensor) -> float:
    """Return how far about the bound is below the log evidence: exactly where it is not far."""
    return float(ratios.var()) / 2


def _error(values: torch.Tensor) -> float:
    """Return the standard error of a mean."""
    return float(values.std()) / math.sqrt(len(values))
