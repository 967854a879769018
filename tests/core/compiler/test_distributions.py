"""Every distribution of Pyro, compiled, against eager PyTorch: value and gradient.

One model holds many distributions, since a run of the C++ compiler costs more than all of them.
Each has parameters of its own, so that a wrong gradient names its distribution.
"""

import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.distributions import constraints

from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity
from ppl_gen.core.compiler.record import record
from ppl_gen.core.compiler.rules import is_known, lower
from ppl_gen.core.log_density import LogDensity
from ppl_gen.core.scope import isolated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")

# Rounding in a few hundred operations; torch's own special functions are good to about 1e-13.
TOLERANCE = 1e-9

Make = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A distribution with latent parameters, as a likelihood and perhaps as a latent site.

    Args:
        name: Its name.
        make: The distribution, from the parameters.
        parameters: Support and shape of each parameter.
        observed: A value; drawn from the distribution where none is given.
        latent: Whether it is a latent site's distribution too.
    """

    name: str
    make: Make
    parameters: tuple[Any, ...]
    observed: torch.Tensor | None = None
    latent: bool = True


def real(*shape: int) -> Any:
    return dist.ImproperUniform(constraints.real, (), ()).expand(shape).to_event(len(shape))


def positive(*shape: int) -> Any:
    return dist.ImproperUniform(constraints.positive, (), ()).expand(shape).to_event(len(shape))


def unit(*shape: int) -> Any:
    support = constraints.unit_interval
    return dist.ImproperUniform(support, (), ()).expand(shape).to_event(len(shape))


def simplex(*shape: int) -> Any:
    return _of_events(constraints.simplex, shape, 1)


def cholesky(size: int) -> Any:
    return _of_events(constraints.lower_cholesky, (size, size), 2)


def positive_definite(size: int) -> Any:
    return _of_events(constraints.positive_definite, (size, size), 2)


def ordered(size: int) -> Any:
    return _of_events(constraints.ordered_vector, (size,), 1)


def _of_events(support: Any, shape: tuple[int, ...], rank: int) -> Any:
    batch = shape[: len(shape) - rank]
    return dist.ImproperUniform(support, batch, shape[len(batch) :]).to_event(len(batch))


def _tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _grid(*shape: int) -> torch.Tensor:
    """Return fixed numbers of no pattern, between -1 and 1."""
    count = math.prod(shape)
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 2.3).reshape(shape)


def _hmm(states: int, steps: int) -> tuple[Any, ...]:
    return real(states), real(states, states), real(steps, states)


def _unscaled(name: str, make: Make, *parameters: Any, **more: Any) -> Case:
    return Case(name, make, parameters, **more)


UNIVARIATE = [
    _unscaled("Normal", dist.Normal, real(3), positive(3)),
    _unscaled("Normal of one number", dist.Normal, real(), positive()),
    _unscaled("AffineBeta", dist.AffineBeta, positive(2), positive(2), real(2), positive(2)),
    _unscaled("AsymmetricLaplace", dist.AsymmetricLaplace, real(3), positive(3), positive(3)),
    _unscaled("Beta", dist.Beta, positive(3), positive(3)),
    _unscaled("Cauchy", dist.Cauchy, real(3), positive(3)),
    _unscaled("Chi2", dist.Chi2, positive(3)),
    _unscaled("Exponential", dist.Exponential, positive(3)),
    _unscaled("FisherSnedecor", dist.FisherSnedecor, positive(3), positive(3)),
    _unscaled(
        "FoldedDistribution",
        lambda loc, scale: dist.FoldedDistribution(dist.Normal(loc, scale)),
        real(3),
        positive(3),
    ),
    _unscaled("Gamma", dist.Gamma, positive(3), positive(3)),
    _unscaled("Gumbel", dist.Gumbel, real(3), positive(3)),
    _unscaled("HalfCauchy", dist.HalfCauchy, positive(3)),
    _unscaled("HalfNormal", dist.HalfNormal, positive(3)),
    _unscaled("InverseGamma", dist.InverseGamma, positive(3), positive(3)),
    _unscaled("Kumaraswamy", dist.Kumaraswamy, positive(3), positive(3)),
    _unscaled("Laplace", dist.Laplace, real(3), positive(3)),
    _unscaled("LogNormal", dist.LogNormal, real(3), positive(3)),
    _unscaled("Logistic", dist.Logistic, real(3), positive(3)),
    _unscaled("SkewLogistic", dist.SkewLogistic, real(3), positive(3), positive(3)),
    _unscaled(
        "SoftAsymmetricLaplace",
        dist.SoftAsymmetricLaplace,
        real(3),
        positive(3),
        positive(3),
        positive(3),
    ),
    _unscaled("SoftLaplace", dist.SoftLaplace, real(3), positive(3)),
    _unscaled("StudentT", dist.StudentT, positive(3), real(3), positive(3)),
    _unscaled(
        "TransformedDistribution",
        lambda loc, scale: dist.TransformedDistribution(
            dist.Normal(loc, scale), [transforms.SigmoidTransform()]
        ),
        real(3),
        positive(3),
    ),
    _unscaled(
        "Uniform of latent bounds",
        lambda low, width: dist.Uniform(low, low + width),
        real(2),
        positive(2),
        observed=_tensor(50.0, 60.0),  # outside: both ends are -inf or finite
    ),
    _unscaled(
        "Uniform", lambda loc: dist.Uniform(loc - loc.abs() - 1, loc + loc.abs() + 1), real(3)
    ),
    _unscaled("VonMises", dist.VonMises, real(3), positive(3)),
    _unscaled("Weibull", dist.Weibull, positive(3), positive(3)),
    _unscaled(
        "Pareto", dist.Pareto, unit(3), positive(3), observed=_tensor(1.5, 2.0, 7.0)
    ),
    _unscaled(
        "GeneralizedPareto",
        dist.GeneralizedPareto,
        real(3),
        positive(3),
        positive(3),
        observed=_tensor(8.0, 9.0, 12.0),
    ),
    _unscaled(
        "RelaxedBernoulli",
        lambda t, logits: dist.RelaxedBernoulli(t, logits=logits),
        positive(),
        real(3),
        latent=False,
    ),
    _unscaled(
        "RelaxedBernoulliStraightThrough",
        lambda t, logits: dist.RelaxedBernoulliStraightThrough(t, logits=logits),
        positive(),
        real(3),
        observed=_tensor(0.3, 0.8, 0.5),
        latent=False,
    ),
    _unscaled(
        "ContinuousBernoulli",
        lambda logits: dist.ContinuousBernoulli(logits=logits),
        real(3),
    ),
    _unscaled("NanMaskedNormal", dist.NanMaskedNormal, real(3), positive(3),
              observed=_tensor(0.3, math.nan, -1.0)),
    _unscaled("TruncatedPolyaGamma",
              lambda rate: dist.TransformedDistribution(
                  dist.TruncatedPolyaGamma(rate.detach()).expand((2,)),
                  [transforms.AffineTransform(0.0, rate)]),
              positive(), observed=_tensor(0.3, 0.8)),
    _unscaled("SineSkewed",
              lambda loc, kappa, skew: dist.SineSkewed(
                  dist.VonMises(loc, kappa).to_event(1), skew - 0.5),
              real(2), positive(2), unit(2), observed=_tensor(0.3, -0.8)),
    _unscaled("SineBivariateVonMises",
              lambda a, b, c, d, w: dist.SineBivariateVonMises(
                  a, b, c, d, weighted_correlation=w),
              real(), real(), positive(), positive(), unit(), observed=_tensor(0.3, -0.8)),
    _unscaled(
        "Rejector",
        lambda loc: dist.Rejector(
            dist.Normal(loc, 1.0), lambda x: -torch.nn.functional.softplus(-x), loc * 0
        ),
        real(3),
        observed=_grid(3),
        latent=False,
    ),
]

DISCRETE = [
    _unscaled("Bernoulli", lambda p: dist.Bernoulli(probs=p), unit(3)),
    _unscaled("Bernoulli of logits", lambda x: dist.Bernoulli(logits=x), real(3)),
    _unscaled(
        "BetaBinomial",
        lambda a, b: dist.BetaBinomial(a, b, total_count=_tensor(5, 6, 7)),
        positive(3),
        positive(3),
    ),
    _unscaled("Binomial", lambda p: dist.Binomial(_tensor(5, 6, 7), probs=p), unit(3)),
    _unscaled("Binomial of logits", lambda x: dist.Binomial(9, logits=x), real(3)),
    _unscaled(
        "Binomial of latent count",
        lambda n, x: dist.Binomial(n + 7, logits=x),
        positive(3),
        real(3),
        observed=_tensor(0, 3, 5),
    ),
    _unscaled("Categorical", lambda p: dist.Categorical(probs=p), simplex(2, 4)),
    _unscaled("Categorical of logits", lambda x: dist.Categorical(logits=x), real(2, 4)),
    _unscaled(
        "DirichletMultinomial",
        lambda a: dist.DirichletMultinomial(a, total_count=9),
        positive(4),
    ),
    _unscaled(
        "ExtendedBinomial",
        lambda x: dist.ExtendedBinomial(_tensor(3, 0, 5).long(), logits=x),
        real(3),
        observed=_tensor(2, 0, 5),
    ),
    _unscaled(
        "ExtendedBetaBinomial",
        lambda a, b: dist.ExtendedBetaBinomial(a, b, _tensor(3, 0, 5).long()),
        positive(3),
        positive(3),
        observed=_tensor(2, 0, 5),
    ),
    _unscaled("GammaPoisson", dist.GammaPoisson, positive(3), positive(3)),
    _unscaled("Geometric", lambda p: dist.Geometric(probs=p), unit(3)),
    _unscaled("Geometric of logits", lambda x: dist.Geometric(logits=x), real(3)),
    _unscaled(
        "LogNormalNegativeBinomial",
        dist.LogNormalNegativeBinomial,
        positive(3),
        real(3),
        positive(3),
    ),
    _unscaled("Multinomial", lambda p: dist.Multinomial(9, probs=p), simplex(4)),
    _unscaled(
        "NegativeBinomial", lambda n, x: dist.NegativeBinomial(n, logits=x), positive(3), real(3)
    ),
    _unscaled("OneHotCategorical", lambda p: dist.OneHotCategorical(probs=p), simplex(2, 4)),
    _unscaled(
        "OneHotCategoricalStraightThrough",
        lambda x: dist.OneHotCategoricalStraightThrough(logits=x),
        real(2, 4),
    ),
    _unscaled("OrderedLogistic", dist.OrderedLogistic, real(5), ordered(3)),
    _unscaled("Poisson", dist.Poisson, positive(3)),
    _unscaled(
        "Poisson, zeros included",
        lambda r: dist.Poisson(r, is_sparse=True),
        positive(3),
        observed=_tensor(0, 2, 0),
    ),
    _unscaled(
        "ZeroInflatedDistribution",
        lambda n, x, g: dist.ZeroInflatedDistribution(
            dist.NegativeBinomial(n, logits=x), gate_logits=g
        ),
        positive(3),
        real(3),
        real(3),
    ),
    _unscaled(
        "ZeroInflatedPoisson",
        lambda r, g: dist.ZeroInflatedPoisson(r, gate=g),
        positive(3),
        unit(3),
        observed=_tensor(0, 2, 0),
    ),
    _unscaled(
        "ZeroInflatedNegativeBinomial",
        lambda n, x, g: dist.ZeroInflatedNegativeBinomial(n, logits=x, gate=g),
        positive(3),
        real(3),
        unit(3),
        observed=_tensor(0, 2, 0),
    ),
    _unscaled(
        "DiscreteHMM of categories",
        lambda a, b, c: dist.DiscreteHMM(a, b, dist.Categorical(logits=c)),
        real(3),
        real(3, 3),
        real(3, 4),
        observed=_tensor(0, 2, 1, 1, 3),
    ),
    _unscaled(
        "OneOneMatching",
        lambda x: dist.OneOneMatching(x, bp_iters=5),
        real(4, 4),
        observed=_tensor(1, 0, 3, 2).long(),
    ),
    _unscaled(
        "OneTwoMatching",
        lambda x: dist.OneTwoMatching(x, bp_iters=5),
        real(4, 2),
        observed=_tensor(1, 0, 0, 1).long(),
    ),
    _unscaled(
        "SpanningTree",
        dist.SpanningTree,
        real(6),
        observed=_tensor([0, 1], [1, 2], [2, 3]).long(),
    ),
]

_EDGES = torch.tensor([0, 1, 1, 0, 2])

MULTIVARIATE = [
    _unscaled("Dirichlet", dist.Dirichlet, positive(4)),
    _unscaled("LogisticNormal", dist.LogisticNormal, real(3), positive(3)),
    _unscaled("MultivariateNormal", lambda m, t: dist.MultivariateNormal(m, scale_tril=t),
              real(3), cholesky(3)),
    _unscaled("MultivariateNormal of a covariance",
              lambda m, c: dist.MultivariateNormal(m, covariance_matrix=c),
              real(3), positive_definite(3)),
    _unscaled("MultivariateNormal of a precision",
              lambda m, c: dist.MultivariateNormal(m, precision_matrix=c),
              real(3), positive_definite(3)),
    _unscaled("MultivariateNormal of constant scale",
              lambda m: dist.MultivariateNormal(m, scale_tril=torch.eye(3) + 0.1 * _grid(3, 3).tril()),
              real(2, 3)),
    _unscaled("LowRankMultivariateNormal", dist.LowRankMultivariateNormal,
              real(4), real(4, 2), positive(4)),
    _unscaled("MultivariateStudentT", dist.MultivariateStudentT, positive(), real(3), cholesky(3)),
    _unscaled("AVFMultivariateNormal",
              lambda m, t: dist.AVFMultivariateNormal(m, t, _grid(2, 2, 3)),
              real(3), cholesky(3), observed=_grid(3)),
    _unscaled("OMTMultivariateNormal", dist.OMTMultivariateNormal, real(3), cholesky(3)),
    _unscaled("NanMaskedMultivariateNormal",
              lambda m, c: dist.NanMaskedMultivariateNormal(m, covariance_matrix=c),
              real(3), positive_definite(3), observed=_tensor(0.3, math.nan, -1.0), latent=False),
    _unscaled("Wishart", lambda n, t: dist.Wishart(n + 3, scale_tril=t), positive(), cholesky(3)),
    _unscaled("Wishart of a covariance",
              lambda n, c: dist.Wishart(n + 3, covariance_matrix=c),
              positive(), positive_definite(3)),
    _unscaled("LKJ", lambda c: dist.LKJ(3, c), positive()),
    _unscaled("LKJCholesky", lambda c: dist.LKJCholesky(3, c), positive()),
    _unscaled("ProjectedNormal", dist.ProjectedNormal, real(3)),
    _unscaled("ProjectedNormal of two", dist.ProjectedNormal, real(2)),
    _unscaled("ProjectedNormal of five", dist.ProjectedNormal, real(5),
              observed=torch.nn.functional.normalize(_grid(5), dim=0)),
    _unscaled("VonMises3D", dist.VonMises3D, real(3),
              observed=_tensor(0.6, 0.0, 0.8), latent=False),
    _unscaled("MixtureOfDiagNormals", dist.MixtureOfDiagNormals,
              real(3, 2), positive(3, 2), real(3)),
    _unscaled("MixtureOfDiagNormalsSharedCovariance", dist.MixtureOfDiagNormalsSharedCovariance,
              real(3, 2), positive(2), real(3)),
    _unscaled("GaussianScaleMixture", dist.GaussianScaleMixture,
              positive(2), real(3), positive(3)),
    _unscaled("MixtureSameFamily", lambda x, m, s: dist.MixtureSameFamily(
        dist.Categorical(logits=x), dist.Normal(m, s)), real(3), real(2, 3), positive(2, 3)),
    _unscaled("MixtureSameFamily of vectors", lambda x, m: dist.MixtureSameFamily(
        dist.Categorical(logits=x), dist.Normal(m, 1.0).to_event(1)), real(3), real(3, 2)),
    _unscaled("MaskedMixture", lambda m, s: dist.MaskedMixture(
        torch.tensor([True, False, True]), dist.Normal(m, s), dist.Cauchy(m, s)),
        real(3), positive(3), observed=_grid(3), latent=False),
    _unscaled("MaskedDistribution", lambda m: dist.Normal(m, 1.0).mask(
        torch.tensor([True, False, True])), real(3)),
    _unscaled("MaskedDistribution of a latent mask", lambda m: dist.Normal(m, 1.0).mask(m > 0),
              real(3), observed=_grid(3), latent=False),
    _unscaled("Independent", lambda m: dist.Independent(dist.Normal(m, 1.0), 1), real(2, 3)),
    _unscaled("ExpandedDistribution", lambda m: dist.Normal(m, 1.0).expand((4, 3)), real(3)),
    _unscaled("Delta", lambda m: dist.Delta(_grid(3), log_density=m, event_dim=1), real(),
              observed=_grid(3), latent=False),
    _unscaled("Unit", lambda m: dist.Unit(-(m**2)), real(3), observed=torch.zeros(3, 0),
              latent=False),
    _unscaled("RelaxedOneHotCategorical",
              lambda t, x: dist.RelaxedOneHotCategorical(t, logits=x), positive(), real(4)),
    _unscaled("RelaxedOneHotCategoricalStraightThrough",
              lambda t, x: dist.RelaxedOneHotCategoricalStraightThrough(t, logits=x),
              positive(), real(4), observed=torch.softmax(_grid(4), 0), latent=False),
    _unscaled("GroupedNormalNormal",
              lambda m, s, o: dist.GroupedNormalNormal(m, s, o, _EDGES),
              real(3), positive(3), positive(5), observed=_grid(5), latent=False),
    _unscaled("CoalescentTimes", lambda r: dist.CoalescentTimes(_tensor(0.0, 0.1, 0.2), r),
              positive(), observed=_tensor(-2.0, -1.0), latent=False),
    _unscaled("CoalescentTimesWithRate",
              lambda r: dist.CoalescentTimesWithRate(_tensor(0.0, 0.1, 3.2), r),
              positive(5), observed=_tensor(-2.0, -1.0), latent=False),
]

SERIES = [
    _unscaled("DiscreteHMM", lambda a, b, c: dist.DiscreteHMM(a, b, dist.Normal(c, 1.0)),
              real(3), real(3, 3), real(3), observed=_grid(6)),
    _unscaled("DiscreteHMM of vectors, seven steps",
              lambda a, b, c: dist.DiscreteHMM(a, b, dist.Normal(c, 1.0).to_event(1)),
              real(2), real(7, 2, 2), real(2, 2), observed=_grid(7, 2)),
    _unscaled("GaussianHMM", lambda m, a, b, s: dist.GaussianHMM(
        dist.Normal(m, 1.0).to_event(1), a, dist.Normal(torch.zeros(2), s).to_event(1), b,
        dist.Normal(torch.zeros(1), 1.0).to_event(1)),
        real(2), real(2, 2), real(2, 1), positive(2), observed=_grid(5, 1), latent=False),
    _unscaled("GammaGaussianHMM", lambda r, a, t, e: dist.GammaGaussianHMM(
        dist.Gamma(r, r), dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), a,
        dist.MultivariateNormal(torch.zeros(2), scale_tril=t), torch.eye(2),
        dist.MultivariateNormal(torch.zeros(2), scale_tril=e)),
        positive(), real(2, 2), cholesky(2), cholesky(2), observed=_grid(4, 2), latent=False),
    _unscaled("GaussianMRF", lambda t, s: dist.GaussianMRF(
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.MultivariateNormal(torch.zeros(4), scale_tril=t),
        dist.MultivariateNormal(torch.zeros(3), scale_tril=s)),
        cholesky(4), cholesky(3), observed=_grid(4, 1), latent=False),
    _unscaled("IndependentHMM", lambda a, s: dist.IndependentHMM(dist.GaussianHMM(
        dist.Normal(torch.zeros(2, 1), 1.0).to_event(1), a,
        dist.Normal(torch.zeros(1), s).to_event(1), torch.ones(2, 1, 1, 1),
        dist.Normal(torch.zeros(1), 1.0).to_event(1), duration=3)),
        real(2, 1, 1, 1), positive(1), observed=_grid(3, 2), latent=False),
]


def _transformed(base: Make, *parts: Any) -> Make:
    return lambda *p: dist.TransformedDistribution(
        base(*p[:2]), [part(*p[2:]) if callable(part) and not isinstance(
            part, transforms.Transform) else part for part in parts])


def _normal(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale)


def _vector(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale).to_event(1)


_ROOT = math.sqrt(0.5)

TRANSFORMS = [
    _unscaled("AffineTransform", _transformed(_normal, transforms.AffineTransform),
              real(3), positive(3), real(3), positive(3)),
    _unscaled("ExpTransform", _transformed(_normal, transforms.ExpTransform()), real(3), positive(3)),
    _unscaled("TanhTransform", _transformed(_normal, transforms.TanhTransform()),
              real(3), positive(3), observed=_tensor(0.3, -0.5, 0.1)),
    _unscaled("SoftplusTransform", _transformed(_normal, transforms.SoftplusTransform()),
              real(3), positive(3)),
    _unscaled("PowerTransform", _transformed(dist.Gamma, transforms.PowerTransform),
              positive(3), positive(3), positive(3)),
    _unscaled("PositivePowerTransform",
              _transformed(dist.Gamma, transforms.PositivePowerTransform(_tensor(1.7))),
              positive(3), positive(3)),
    _unscaled("SigmoidTransform", _transformed(_normal, transforms.SigmoidTransform()),
              real(3), positive(3)),
    _unscaled("CumulativeDistributionTransform", _transformed(
        dist.Beta, transforms.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)).inv),
        positive(3), positive(3), observed=_grid(3), latent=False),
    _unscaled("ELUTransform", _transformed(_normal, transforms.ELUTransform()),
              real(3), positive(3), observed=_tensor(0.3, -0.5, 1.1)),
    _unscaled("LeakyReLUTransform", _transformed(_normal, transforms.LeakyReLUTransform()),
              real(3), positive(3), observed=_tensor(0.3, -0.5, 1.1)),
    _unscaled("OrderedTransform", _transformed(_vector, transforms.OrderedTransform()),
              real(3), positive(3)),
    _unscaled("StickBreakingTransform", _transformed(_vector, transforms.StickBreakingTransform()),
              real(3), positive(3)),
    _unscaled("SimplexToOrderedTransform", lambda a, b: dist.TransformedDistribution(
        dist.Dirichlet(a), [transforms.SimplexToOrderedTransform(b)]), positive(4), real(),
        observed=_tensor(-1.0, 0.2, 1.3)),
    _unscaled("CorrCholeskyTransform", _transformed(_vector, transforms.CorrCholeskyTransform()),
              real(3), positive(3)),
    _unscaled("CorrLCholeskyTransform", _transformed(_vector, transforms.CorrLCholeskyTransform()),
              real(3), positive(3)),
    _unscaled("CorrMatrixCholeskyTransform", lambda c: dist.TransformedDistribution(
        dist.LKJCholesky(3, c), [transforms.CorrMatrixCholeskyTransform().inv]), positive()),
    _unscaled("LowerCholeskyAffine", _transformed(_vector, transforms.LowerCholeskyAffine),
              real(3), positive(3), real(3), cholesky(3)),
    _unscaled("HaarTransform", _transformed(_vector, transforms.HaarTransform(dim=-1)),
              real(4), positive(4)),
    _unscaled("Permute", _transformed(_vector, transforms.Permute(torch.tensor([2, 0, 1]))),
              real(3), positive(3)),
    _unscaled("ReshapeTransform", _transformed(_vector, transforms.ReshapeTransform((4,), (2, 2))),
              real(4), positive(4)),
    _unscaled("CatTransform", _transformed(_vector, transforms.IndependentTransform(
        transforms.CatTransform([transforms.ExpTransform(), transforms.SigmoidTransform()], 0, [1, 2]),
        1)), real(3), positive(3), latent=False),
    _unscaled("Normalize", lambda m: dist.Delta(transforms.Normalize()(m), m.sum() * 0, 1), real(3),
              observed=_grid(3), latent=False),
    _unscaled("AbsTransform", lambda m: dist.Normal(transforms.AbsTransform()(m), 1.0), real(3)),
    _unscaled("SoftmaxTransform", lambda m: dist.Categorical(transforms.SoftmaxTransform()(m)), real(3)),
]


def _with_weights(make: Callable[[], Any], size: int) -> Case:
    """Return a flow of fixed random weights, on a base of latent parameters."""

    def distribution(loc: Any, scale: Any) -> Any:
        with isolated(3, torch.float64):
            flow = make().double()
        return dist.TransformedDistribution(_vector(loc, scale), [flow])

    raise AssertionError(distribution)


CASES = [*UNIVARIATE, *DISCRETE, *MULTIVARIATE, *SERIES, *TRANSFORMS]
