"""Every distribution and transform of Pyro, compiled, against eager PyTorch: value and gradient.

One model holds many distributions, since a run of the C++ compiler costs more than all of them.
Each has parameters of its own and a scale of its own, whose derivative is the site's log density:
both value and gradient of each distribution are parts of the compiled gradient.
"""

import inspect
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from torch import Tensor
from torch.nn.functional import normalize, softplus

from ppl_gen.core.bijections import bijection_to
from ppl_gen.core.compiler.compiled import CannotCompile, CompiledLogDensity
from ppl_gen.core.compiler.record import record
from ppl_gen.core.compiler.rules import is_known, lower
from ppl_gen.core.errors import SiteError
from ppl_gen.core.log_density import LogDensity
from ppl_gen.core.scope import isolated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")

# Rounding in a few hundred operations; torch's own special functions are good to about 1e-13.
TOLERANCE = 1e-9
POINTS = 3

Make = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A distribution with latent parameters, as a likelihood and perhaps as a latent site.

    Args:
        name: Its class, and what is special about it.
        make: The distribution, from the parameters.
        parameters: A prior for each parameter.
        observed: A value; drawn from the distribution where none is given.
        latent: Whether it is a latent site's distribution too.
    """

    name: str
    make: Make
    parameters: tuple[Any, ...]
    observed: Tensor | None = None
    latent: bool = True


def case(name: str, make: Make, *parameters: Any, **more: Any) -> Case:
    return Case(name, make, parameters, **more)


def seen(name: str, make: Make, *parameters: Any, observed: Tensor | None = None) -> Case:
    """Return a distribution of observations only."""
    return Case(name, make, parameters, observed, latent=False)


def _flat(support: Any, shape: tuple[int, ...]) -> Any:
    rank = support.event_dim
    batch = shape[: len(shape) - rank]
    return dist.ImproperUniform(support, batch, shape[len(batch) :]).to_event(len(batch))


def real(*shape: int) -> Any:
    return _flat(constraints.real, shape)


def positive(*shape: int) -> Any:
    return _flat(constraints.positive, shape)


def unit(*shape: int) -> Any:
    return _flat(constraints.unit_interval, shape)


def simplex(*shape: int) -> Any:
    return _flat(constraints.simplex, shape)


def ordered(size: int) -> Any:
    return _flat(constraints.ordered_vector, (size,))


def triangular(size: int) -> Any:
    return _flat(constraints.lower_cholesky, (size, size))


def definite(size: int) -> Any:
    return _flat(constraints.positive_definite, (size, size))


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fixed(*shape: int) -> Tensor:
    """Return constants of no pattern, between -1 and 1."""
    count = math.prod(shape)
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 2.3).reshape(shape)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def normals(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale).to_event(1)


UNIVARIATE = [
    case("Normal", dist.Normal, real(3), positive(3)),
    case("Normal of one number", dist.Normal, real(), positive()),
    case(
        "AffineBeta",
        lambda a, b, low, width: dist.AffineBeta(a, b, -low - 1, low + 2 + width),
        positive(2),
        positive(2),
        positive(2),
        positive(2),
        observed=tensor(0.3, 0.9),
    ),
    case("AsymmetricLaplace", dist.AsymmetricLaplace, real(3), positive(3), positive(3)),
    case("Beta", dist.Beta, positive(3), positive(3)),
    case("Cauchy", dist.Cauchy, real(3), positive(3)),
    case("Chi2", dist.Chi2, positive(3)),
    case("ContinuousBernoulli", lambda x: dist.ContinuousBernoulli(logits=x), real(3)),
    case("Exponential", dist.Exponential, positive(3)),
    case("FisherSnedecor", dist.FisherSnedecor, positive(3), positive(3)),
    case(
        "FoldedDistribution",
        lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)),
        real(3),
        positive(3),
    ),
    case("Gamma", dist.Gamma, positive(3), positive(3)),
    seen(
        "GeneralizedPareto",
        dist.GeneralizedPareto,
        real(3),
        positive(3),
        positive(3),
        observed=tensor(8.0, 9.0, 12.0),
    ),
    case("Gumbel", dist.Gumbel, real(3), positive(3)),
    case("HalfCauchy", dist.HalfCauchy, positive(3)),
    case("HalfNormal", dist.HalfNormal, positive(3)),
    case("InverseGamma", dist.InverseGamma, positive(3), positive(3)),
    case("Kumaraswamy", dist.Kumaraswamy, positive(3), positive(3)),
    case("Laplace", dist.Laplace, real(3), positive(3)),
    case("LogNormal", dist.LogNormal, real(3), positive(3)),
    case("Logistic", dist.Logistic, real(3), positive(3)),
    seen(
        "NanMaskedNormal",
        dist.NanMaskedNormal,
        real(3),
        positive(3),
        observed=tensor(0.3, math.nan, -1.0),
    ),
    case("Pareto", dist.Pareto, unit(3), positive(3), observed=tensor(1.5, 2.0, 7.0)),
    seen(
        "Rejector",
        lambda m: dist.Rejector(dist.Normal(m, 1.0), lambda x: -softplus(-x), zeros(3)),
        real(3),
        observed=fixed(3),
    ),
    case("RelaxedBernoulli", lambda t, x: dist.RelaxedBernoulli(t, logits=x), positive(), real(3)),
    seen(
        "RelaxedBernoulliStraightThrough",
        lambda t, x: dist.RelaxedBernoulliStraightThrough(t, logits=x),
        positive(),
        real(3),
        observed=tensor(0.3, 0.8, 0.5),
    ),
    case("SkewLogistic", dist.SkewLogistic, real(3), positive(3), positive(3)),
    case(
        "SoftAsymmetricLaplace",
        dist.SoftAsymmetricLaplace,
        real(3),
        positive(3),
        positive(3),
        positive(3),
    ),
    case("SoftLaplace", dist.SoftLaplace, real(3), positive(3)),
    case("StudentT", dist.StudentT, positive(3), real(3), positive(3)),
    seen(
        "TruncatedPolyaGamma",
        lambda rate: dist.TransformedDistribution(
            dist.TruncatedPolyaGamma(zeros(2)).expand((2,)),
            [transforms.AffineTransform(0.0, rate + 1)],
        ),
        positive(),
        observed=tensor(0.3, 0.8),
    ),
    case(
        "Uniform",
        lambda low, high: dist.Uniform(-low - 1, high + 1),
        positive(3),
        positive(3),
        observed=tensor(0.3, 0.9, -1.0),
    ),
    case("VonMises", dist.VonMises, real(3), positive(3)),
    case("Weibull", dist.Weibull, positive(3), positive(3)),
]

DISCRETE = [
    seen("Bernoulli", lambda p: dist.Bernoulli(probs=p), unit(3)),
    seen("Bernoulli of logits", lambda x: dist.Bernoulli(logits=x), real(3)),
    seen(
        "BetaBinomial",
        lambda a, b: dist.BetaBinomial(a, b, total_count=tensor(5, 6, 7)),
        positive(3),
        positive(3),
    ),
    seen("Binomial", lambda p: dist.Binomial(tensor(5, 6, 7), probs=p), unit(3)),
    seen("Binomial of logits", lambda x: dist.Binomial(9, logits=x), real(3)),
    seen("Categorical", lambda p: dist.Categorical(probs=p), simplex(2, 4)),
    seen("Categorical of logits", lambda x: dist.Categorical(logits=x), real(2, 4)),
    seen("DirichletMultinomial", lambda a: dist.DirichletMultinomial(a, 9), positive(4)),
    seen(
        "DiscreteHMM of categories",
        lambda a, b, c: dist.DiscreteHMM(a, b, dist.Categorical(logits=c)),
        real(3),
        real(3, 3),
        real(3, 4),
        observed=tensor(0, 2, 1, 1, 3),
    ),
    seen(
        "ExtendedBetaBinomial",
        lambda a, b: dist.ExtendedBetaBinomial(a, b, tensor(3, 0, 5).long()),
        positive(3),
        positive(3),
        observed=tensor(2, 0, 5),
    ),
    seen(
        "ExtendedBinomial",
        lambda x: dist.ExtendedBinomial(tensor(3, 0, 5).long(), logits=x),
        real(3),
        observed=tensor(2, 0, 5),
    ),
    seen("GammaPoisson", dist.GammaPoisson, positive(3), positive(3)),
    seen("Geometric", lambda p: dist.Geometric(probs=p), unit(3)),
    seen("Geometric of logits", lambda x: dist.Geometric(logits=x), real(3)),
    seen(
        "LogNormalNegativeBinomial",
        dist.LogNormalNegativeBinomial,
        positive(3),
        real(3),
        positive(3),
        observed=tensor(0, 2, 5),
    ),
    seen("Multinomial", lambda p: dist.Multinomial(9, probs=p), simplex(4)),
    seen("NegativeBinomial", lambda n, x: dist.NegativeBinomial(n, logits=x), positive(3), real(3)),
    seen("OneHotCategorical", lambda p: dist.OneHotCategorical(probs=p), simplex(2, 4)),
    seen(
        "OneHotCategoricalStraightThrough",
        lambda x: dist.OneHotCategoricalStraightThrough(logits=x),
        real(2, 4),
    ),
    seen("OneOneMatching", dist.OneOneMatching, real(3, 3), observed=tensor(1, 0, 2).long()),
    seen("OneTwoMatching", dist.OneTwoMatching, real(4, 2), observed=tensor(1, 0, 0, 1).long()),
    seen("OrderedLogistic", dist.OrderedLogistic, real(5), ordered(3)),
    seen("Poisson", dist.Poisson, positive(3)),
    seen(
        "Poisson of many zeros",
        lambda r: dist.Poisson(r, is_sparse=True),
        positive(3),
        observed=tensor(0, 2, 0),
    ),
    seen(
        "SpanningTree", dist.SpanningTree, real(6), observed=tensor([0, 1], [1, 2], [2, 3]).long()
    ),
    seen(
        "ZeroInflatedDistribution",
        lambda n, x, g: dist.ZeroInflatedDistribution(
            dist.NegativeBinomial(n, logits=x), gate_logits=g
        ),
        positive(3),
        real(3),
        real(3),
    ),
    seen(
        "ZeroInflatedNegativeBinomial",
        lambda n, x, g: dist.ZeroInflatedNegativeBinomial(n, logits=x, gate=g),
        positive(3),
        real(3),
        unit(3),
        observed=tensor(0, 2, 0),
    ),
    seen(
        "ZeroInflatedPoisson",
        lambda r, g: dist.ZeroInflatedPoisson(r, gate=g),
        positive(3),
        unit(3),
        observed=tensor(0, 2, 0),
    ),
]

_EDGES = torch.tensor([0, 1, 1, 0, 2])

MULTIVARIATE = [
    seen(
        "AVFMultivariateNormal",
        lambda m, t: dist.AVFMultivariateNormal(m, t, fixed(2, 2, 3)),
        real(3),
        triangular(3),
        observed=fixed(3),
    ),
    seen(
        "CoalescentTimes",
        lambda r: dist.CoalescentTimes(tensor(0.0, 0.1, 0.2), r),
        positive(),
        observed=tensor(-2.0, -1.0),
    ),
    seen(
        "CoalescentTimesWithRate",
        lambda r: dist.CoalescentTimesWithRate(tensor(0.0, 0.1, 3.2), r),
        positive(5),
        observed=tensor(-2.0, -1.0),
    ),
    seen(
        "Delta",
        lambda x: dist.Delta(fixed(3), log_density=x, event_dim=1),
        real(),
        observed=fixed(3),
    ),
    case("Dirichlet", dist.Dirichlet, positive(4)),
    case("ExpandedDistribution", lambda m: dist.Normal(m, 1.0).expand((4, 3)), real(3)),
    seen(
        "GroupedNormalNormal",
        lambda m, s, o: dist.GroupedNormalNormal(m, s, o, _EDGES),
        real(3),
        positive(3),
        positive(5),
        observed=fixed(5),
    ),
    case("Independent", lambda m: dist.Independent(dist.Normal(m, 1.0), 1), real(2, 3)),
    case("LKJ", lambda c: dist.LKJ(3, c), positive()),
    case("LKJCholesky", lambda c: dist.LKJCholesky(3, c), positive()),
    case("LogisticNormal", dist.LogisticNormal, real(3), positive(3)),
    case(
        "LowRankMultivariateNormal",
        dist.LowRankMultivariateNormal,
        real(4),
        real(4, 2),
        positive(4),
    ),
    case(
        "MaskedDistribution",
        lambda m: dist.Normal(m, 1.0).mask(torch.tensor([True, False, True])),
        real(3),
    ),
    seen(
        "MaskedDistribution of a latent mask",
        lambda m: dist.Normal(m, 1.0).mask(m > 0),
        real(3),
        observed=fixed(3),
    ),
    seen(
        "MaskedMixture",
        lambda m, s: dist.MaskedMixture(
            torch.tensor([True, False, True]), dist.Normal(m, s), dist.Cauchy(m, s)
        ),
        real(3),
        positive(3),
        observed=fixed(3),
    ),
    case("MixtureOfDiagNormals", dist.MixtureOfDiagNormals, real(3, 2), positive(3, 2), real(3)),
    case(
        "MixtureOfDiagNormalsSharedCovariance",
        dist.MixtureOfDiagNormalsSharedCovariance,
        real(3, 2),
        positive(2),
        real(3),
    ),
    case(
        "MixtureSameFamily",
        lambda x, m, s: dist.MixtureSameFamily(dist.Categorical(logits=x), dist.Normal(m, s)),
        real(2, 3),
        real(2, 3),
        positive(2, 3),
    ),
    case(
        "MixtureSameFamily of vectors",
        lambda x, m: dist.MixtureSameFamily(dist.Categorical(logits=x), normals(m, 1.0)),
        real(3),
        real(3, 2),
    ),
    case(
        "MultivariateNormal",
        lambda m, t: dist.MultivariateNormal(m, scale_tril=t),
        real(3),
        triangular(3),
    ),
    case(
        "MultivariateNormal of a covariance",
        lambda m, c: dist.MultivariateNormal(m, covariance_matrix=c),
        real(3),
        definite(3),
    ),
    case(
        "MultivariateNormal of a precision",
        lambda m, c: dist.MultivariateNormal(m, precision_matrix=c),
        real(3),
        definite(3),
    ),
    case(
        "MultivariateNormal of constant scale",
        lambda m: dist.MultivariateNormal(m, scale_tril=eye(3) + 0.1 * fixed(3, 3).tril()),
        real(2, 3),
    ),
    case("MultivariateStudentT", dist.MultivariateStudentT, positive(), real(3), triangular(3)),
    seen(
        "NanMaskedMultivariateNormal",
        lambda m, c: dist.NanMaskedMultivariateNormal(m, covariance_matrix=c),
        real(3),
        definite(3),
        observed=tensor(0.3, math.nan, -1.0),
    ),
    case("OMTMultivariateNormal", dist.OMTMultivariateNormal, real(3), triangular(3)),
    seen("ProjectedNormal", dist.ProjectedNormal, real(3), observed=normalize(fixed(3), dim=0)),
    seen(
        "ProjectedNormal of two",
        dist.ProjectedNormal,
        real(2),
        observed=normalize(fixed(2), dim=0),
    ),
    case(
        "RelaxedOneHotCategorical",
        lambda t, x: dist.RelaxedOneHotCategorical(t, logits=x),
        positive(),
        real(4),
    ),
    seen(
        "RelaxedOneHotCategoricalStraightThrough",
        lambda t, x: dist.RelaxedOneHotCategoricalStraightThrough(t, logits=x),
        positive(),
        real(4),
        observed=torch.softmax(fixed(4), 0),
    ),
    seen(
        "SineSkewed of constant skewness",
        lambda m, k: dist.SineSkewed(dist.VonMises(m, k).to_event(1), tensor(0.3, -0.2)),
        real(2),
        positive(2),
        observed=tensor(0.3, -0.8),
    ),
    case(
        "TransformedDistribution",
        lambda m, s: dist.TransformedDistribution(
            dist.Normal(m, s), [transforms.SigmoidTransform(), transforms.AffineTransform(1, m)]
        ),
        positive(3),
        positive(3),
        observed=1 + tensor(1e-3, 2e-3, 3e-3),
    ),
    seen("Unit", lambda m: dist.Unit(-(m**2)), real(3), observed=zeros(3, 0)),
    seen("VonMises3D", dist.VonMises3D, real(3), observed=tensor(0.6, 0.0, 0.8)),
    case("Wishart", lambda s, t: dist.Wishart(5.5, scale_tril=s * t), positive(), triangular(3)),
    case(
        "Wishart of a covariance",
        lambda c: dist.Wishart(5.5, covariance_matrix=c),
        definite(3),
    ),
]

SERIES = [
    seen(
        "DiscreteHMM",
        lambda a, b, c: dist.DiscreteHMM(a, b, dist.Normal(c, 1.0)),
        real(3),
        real(3, 3),
        real(3),
        observed=fixed(6),
    ),
    seen(
        "DiscreteHMM of vectors",
        lambda a, b, c: dist.DiscreteHMM(a, b, normals(c, 1.0)),
        real(2),
        real(7, 2, 2),
        real(2, 2),
        observed=fixed(7, 2),
    ),
    seen(
        "GammaGaussianHMM",
        lambda r, a, t, e: dist.GammaGaussianHMM(
            dist.Gamma(r, r),
            dist.MultivariateNormal(zeros(2), eye(2)),
            a,
            dist.MultivariateNormal(zeros(2), scale_tril=t),
            eye(2),
            dist.MultivariateNormal(zeros(2), scale_tril=e),
        ),
        positive(),
        real(2, 2),
        triangular(2),
        triangular(2),
        observed=fixed(4, 2),
    ),
    seen(
        "GaussianHMM",
        lambda m, a, b, s: dist.GaussianHMM(
            normals(m, 1.0), a, normals(zeros(2), s), b, normals(zeros(1), 1.0)
        ),
        real(2),
        real(2, 2),
        real(2, 1),
        positive(2),
        observed=fixed(5, 1),
    ),
    seen(
        "GaussianMRF",
        lambda t, s: dist.GaussianMRF(
            dist.MultivariateNormal(zeros(2), eye(2)),
            dist.MultivariateNormal(zeros(4), scale_tril=t),
            dist.MultivariateNormal(zeros(3), scale_tril=s),
        ),
        triangular(4),
        triangular(3),
        observed=fixed(4, 1),
    ),
    seen(
        "IndependentHMM",
        lambda a, s: dist.IndependentHMM(
            dist.GaussianHMM(
                normals(zeros(2, 1), 1.0),
                a,
                normals(zeros(1), s),
                torch.ones(2, 1, 1, 1, dtype=torch.float64),
                normals(zeros(1), 1.0),
                duration=3,
            )
        ),
        real(2, 1, 1, 1),
        positive(1),
        observed=fixed(3, 2),
    ),
]


def transformed(transform: Any, base: Make = dist.Normal) -> Make:
    return lambda a, b: dist.TransformedDistribution(base(a, b), [transform])


TRANSFORMS = [
    case("AbsTransform", lambda m: dist.Normal(transforms.AbsTransform()(m), 1.0), real(3)),
    case(
        "AffineTransform",
        lambda m, s, a, b: dist.TransformedDistribution(
            dist.Normal(m, s), [transforms.AffineTransform(a, b)]
        ),
        real(3),
        positive(3),
        real(3),
        positive(3),
    ),
    seen(
        "CatTransform",
        transformed(
            transforms.CatTransform(
                [transforms.ExpTransform(), transforms.SigmoidTransform()], 0, [1, 2]
            ),
            normals,
        ),
        real(3),
        positive(3),
        observed=tensor(1.2, 0.3, 0.6),
    ),
    case(
        "CholeskyTransform",
        lambda c: dist.TransformedDistribution(
            dist.Wishart(5.5, covariance_matrix=c), [transforms.CholeskyTransform()]
        ),
        definite(3),
    ),
    case(
        "CorrCholeskyTransform",
        transformed(transforms.CorrCholeskyTransform(), normals),
        real(3),
        positive(3),
    ),
    case(
        "CorrMatrixCholeskyTransform",
        lambda c: dist.TransformedDistribution(
            dist.LKJCholesky(3, c), [transforms.CorrMatrixCholeskyTransform().inv]
        ),
        positive(),
    ),
    seen(
        "CumulativeDistributionTransform",
        lambda a, b: dist.TransformedDistribution(
            dist.Beta(a, b), [transforms.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)).inv]
        ),
        positive(3),
        positive(3),
        observed=fixed(3),
    ),
    seen(
        "ELUTransform",
        transformed(transforms.ELUTransform()),
        real(3),
        positive(3),
        observed=tensor(0.3, 0.5, 1.1),
    ),
    case("ExpTransform", transformed(transforms.ExpTransform()), real(3), positive(3)),
    case(
        "HaarTransform",
        transformed(transforms.HaarTransform(dim=-1), normals),
        real(4),
        positive(4),
    ),
    case(
        "IndependentTransform",
        transformed(transforms.IndependentTransform(transforms.ExpTransform(), 1), normals),
        real(3),
        positive(3),
    ),
    seen(
        "LeakyReLUTransform",
        transformed(transforms.LeakyReLUTransform()),
        real(3),
        positive(3),
        observed=tensor(0.3, 0.5, 1.1),
    ),
    case(
        "LowerCholeskyAffine",
        lambda m, s, a, t: dist.TransformedDistribution(
            normals(m, s), [transforms.LowerCholeskyAffine(a, t)]
        ),
        real(3),
        positive(3),
        real(3),
        triangular(3),
    ),
    seen(
        "LowerCholeskyTransform",
        lambda x: normals(transforms.LowerCholeskyTransform()(x).diagonal(), 1.0),
        real(3, 3),
        observed=fixed(3),
    ),
    case(
        "OrderedTransform",
        transformed(transforms.OrderedTransform(), normals),
        real(3),
        positive(3),
    ),
    case(
        "Permute",
        transformed(transforms.Permute(torch.tensor([2, 0, 1])), normals),
        real(3),
        positive(3),
    ),
    seen(
        "PositiveDefiniteTransform",
        lambda x: normals(transforms.PositiveDefiniteTransform()(x)[0], 1.0),
        real(3, 3),
        observed=fixed(3),
    ),
    seen(
        "PositivePowerTransform",
        transformed(transforms.PositivePowerTransform(tensor(1.7)[0]), dist.Gamma),
        positive(3),
        positive(3),
    ),
    case(
        "PowerTransform",
        lambda a, b, e: dist.TransformedDistribution(
            dist.Gamma(a, b), [transforms.PowerTransform(e)]
        ),
        positive(3),
        positive(3),
        positive(3),
    ),
    case(
        "ReshapeTransform",
        transformed(transforms.ReshapeTransform((4,), (2, 2)), normals),
        real(4),
        positive(4),
    ),
    case("SigmoidTransform", transformed(transforms.SigmoidTransform()), real(3), positive(3)),
    seen(
        "SimplexToOrderedTransform",
        lambda a, b: dist.TransformedDistribution(
            dist.Dirichlet(a), [transforms.SimplexToOrderedTransform(b)]
        ),
        positive(4),
        real(),
        observed=tensor(-1.0, 0.2, 1.3),
    ),
    seen("SoftmaxTransform", lambda m: dist.Categorical(transforms.SoftmaxTransform()(m)), real(3)),
    seen(
        "SoftplusLowerCholeskyTransform",
        lambda x: normals(transforms.SoftplusLowerCholeskyTransform()(x).diagonal(), 1.0),
        real(3, 3),
        observed=fixed(3),
    ),
    case("SoftplusTransform", transformed(transforms.SoftplusTransform()), real(3), positive(3)),
    seen(
        "StackTransform",
        lambda m, s: dist.Normal(
            transforms.StackTransform([transforms.ExpTransform(), transforms.TanhTransform()], 0)(
                m
            ),
            s,
        ),
        real(2, 2),
        positive(2),
        observed=fixed(2, 2),
    ),
    case(
        "StickBreakingTransform",
        transformed(transforms.StickBreakingTransform(), normals),
        real(3),
        positive(3),
    ),
    case(
        "TanhTransform",
        transformed(transforms.TanhTransform()),
        real(3),
        positive(3),
        observed=tensor(0.3, -0.5, 0.1),
    ),
]


def pushed(name: str, make: Callable[[], Any], size: int = 3) -> Case:
    """Return a flow of fixed random weights run forwards: a site that is warped, by a factor."""
    with isolated(3, torch.float64):
        flow = make()

    def distribution(z: Any, scale: Any) -> Any:
        x = flow(z)
        log_density = -0.5 * (x / scale).square() / size
        return dist.Unit(log_density.sum() + flow.log_abs_det_jacobian(z, x).sum())

    return seen(name, distribution, real(size), positive(), observed=zeros(0))


def pulled(name: str, make: Callable[[], Any], size: int = 3) -> Case:
    """Return a flow of fixed random weights run backwards, as the likelihood of an observation."""
    with isolated(3, torch.float64):
        flow = make()

    def distribution(loc: Any, scale: Any) -> Any:
        return dist.TransformedDistribution(normals(loc, scale), [flow])

    return seen(name, distribution, real(size), positive(size), observed=0.4 * fixed(size))


def given(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make().condition(fixed(2))


FLOWS = [
    pushed("AffineAutoregressive", lambda: transforms.affine_autoregressive(3, [5])),
    pulled("AffineAutoregressive backwards", lambda: transforms.affine_autoregressive(3, [5])),
    pushed("AffineCoupling", lambda: transforms.affine_coupling(3, hidden_dims=[5])),
    pulled("AffineCoupling backwards", lambda: transforms.affine_coupling(3, hidden_dims=[5])),
    pushed("BatchNorm", lambda: transforms.batchnorm(3).eval()),
    pushed("BlockAutoregressive", lambda: transforms.block_autoregressive(3, activation="tanh")),
    pushed("ComposeTransform", lambda: transforms.iterated(2, transforms.planar, 3)),
    pushed("ComposeTransformModule", lambda: transforms.iterated(2, transforms.radial, 3)),
    pushed("Householder", lambda: transforms.householder(3, 2)),
    pushed("MatrixExponential", lambda: transforms.matrix_exponential(3)),
    pushed("NeuralAutoregressive", lambda: transforms.neural_autoregressive(3, [5])),
    pushed("Planar", lambda: transforms.planar(3)),
    pushed("Polynomial", lambda: transforms.polynomial(3, [5])),
    pushed("Radial", lambda: transforms.radial(3)),
    pulled("Spline", lambda: transforms.spline(3, count_bins=4)),
    pushed("Sylvester", lambda: transforms.sylvester(3)),
    pushed(
        "ConditionalAffineAutoregressive",
        given(lambda: transforms.conditional_affine_autoregressive(3, 2, [5])),
    ),
    pushed(
        "ConditionalAffineCoupling",
        given(lambda: transforms.conditional_affine_coupling(3, 2, hidden_dims=[5])),
    ),
    pushed("ConditionalHouseholder", given(lambda: transforms.conditional_householder(3, 2, [5]))),
    pushed(
        "ConditionalNeuralAutoregressive",
        given(lambda: transforms.conditional_neural_autoregressive(3, 2, [5])),
    ),
    pushed(
        "ConditionalMatrixExponential",
        given(lambda: transforms.conditional_matrix_exponential(3, 2, [5])),
    ),
    pushed("ConditionalPlanar", given(lambda: transforms.conditional_planar(3, 2, [5]))),
    pushed("ConditionalRadial", given(lambda: transforms.conditional_radial(3, 2, [5]))),
]
TABLES = {
    "univariate": UNIVARIATE,
    "discrete": DISCRETE,
    "multivariate": MULTIVARIATE,
    "series": SERIES,
    "transforms": TRANSFORMS,
    "flows": FLOWS,
}
WITH_LATENTS = ("univariate", "multivariate", "transforms")


def _observation(case: Case) -> Tensor:
    """Return the value given, or a draw at typical parameters."""
    if case.observed is not None:
        return case.observed
    with isolated(0, torch.float64):
        parameters = []
        for parameter in case.parameters:
            bijection = bijection_to(parameter.support, parameter.shape())
            shape = bijection.inverse_shape(torch.Size(parameter.shape()))
            parameters.append(bijection(0.3 * torch.randn(shape)))
        drawn = case.make(*parameters).sample()
    assert isinstance(drawn, Tensor)
    return drawn


def _model(cases: Sequence[Case], *, latent: bool) -> Callable[[], None]:
    """Return one model of all cases, each scaled by a latent site of its own."""
    observed = {} if latent else {case.name: _observation(case) for case in cases}

    def model() -> None:
        for case in cases:
            parameters = [
                pyro.sample(f"{case.name}/{position}", parameter)
                for position, parameter in enumerate(case.parameters)
            ]
            distribution = case.make(*parameters)
            distribution = distribution.to_event(len(distribution.batch_shape))
            with poutine.scale(scale=pyro.sample(f"{case.name}/scale", positive())):
                pyro.sample(f"{case.name}/value", distribution, obs=observed.get(case.name))

    return model


def assert_compiled_like_eager(cases: Sequence[Case], *, latent: bool) -> None:
    assert_density_compiled_like_eager(LogDensity(_model(cases, latent=latent), {}))


def assert_density_compiled_like_eager(density: LogDensity) -> None:
    points = 0.5 * torch.randn(POINTS, density.dim, dtype=torch.float64)
    compiled = CompiledLogDensity(density, points[0], lanes=4)
    values, gradients = compiled(points)
    wrong = []
    for point, value, gradient in zip(points, values, gradients, strict=True):
        leaf = point.clone().requires_grad_()
        want = density.log_prob(leaf)
        (slope,) = torch.autograd.grad(want, leaf)
        assert torch.isfinite(want), "the densities must be finite where they are compared"
        for name, block in density.blocks.items():
            part = slice(block.start, block.stop)
            error = (gradient[part] - slope[part]).abs().max()
            if not error <= TOLERANCE * (1 + slope[part].abs().max()):
                wrong.append(f"{name}: {gradient[part].tolist()}, not {slope[part].tolist()}")
        if not abs(float(value - want.detach())) <= TOLERANCE * (1 + float(slope.abs().sum())):
            wrong.append(f"the sum is {float(value)}, not {float(want.detach())}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
@pytest.mark.parametrize("table", TABLES)
def test_likelihoods_of_latent_parameters(table: str) -> None:
    assert_compiled_like_eager(TABLES[table], latent=False)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
@pytest.mark.parametrize("table", WITH_LATENTS)
def test_latent_sites(table: str) -> None:
    assert_compiled_like_eager([case for case in TABLES[table] if case.latent], latent=True)


def test_an_enumerated_mixture_and_chain() -> None:
    observed = torch.cat([fixed(5), tensor(3.0, 2.8)])

    def mixture() -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
        centres = pyro.sample("centres", dist.Normal(zeros(3), 3.0).to_event(1))
        with pyro.plate("data", len(observed)):
            kind = pyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(centres[kind], 1.0), obs=observed)

    def chain() -> None:
        rows = dist.Dirichlet(torch.ones(2, 2, dtype=torch.float64)).to_event(1)
        transition = pyro.sample("transition", rows)
        centres = pyro.sample("centres", dist.Normal(zeros(2), 3.0).to_event(1))
        state = torch.tensor(0)
        for t in pyro.markov(range(len(observed))):
            state = pyro.sample(
                f"state_{t}",
                dist.Categorical(transition[state]),
                infer={"enumerate": "parallel"},
            )
            pyro.sample(f"y_{t}", dist.Normal(centres[state], 1.0), obs=observed[t])

    for model in (mixture, chain):
        assert_density_compiled_like_eager(LogDensity(model, {}))


# --- what is refused: each with its reason, and a failure here when it starts to work

_DATA_DEPENDENT = "the course of the model depends on the value of a latent site"
_MASK = "a mask of aten.index.Tensor depends on a latent site"
_NO_BIJECTION = "a support with a bijection from unconstrained space"

REFUSED: dict[str, tuple[Case, bool, type[Exception], str]] = {
    one.name: (one, latent, error, reason)
    for one, latent, error, reason in (
        # Pyro checks a latent argument by an `if`.
        (
            case(
                "SineBivariateVonMises",
                lambda a, b, r: dist.SineBivariateVonMises(a, a, b, b, correlation=r),
                real(),
                positive(),
                real(),
                observed=tensor(0.3, -0.8),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case(
                "SineSkewed",
                lambda m, skew: dist.SineSkewed(normals(m, 1.0), skew - 0.5),
                real(2),
                unit(2),
                observed=tensor(0.3, -0.8),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case(
                "Wishart of latent degrees",
                lambda n: dist.Wishart(n + 3, scale_tril=eye(3)),
                positive(),
                observed=eye(3),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case("Stable", lambda a: dist.Stable(a + 1, a), unit(2), observed=fixed(2)),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case(
                "StableWithLogProb",
                lambda a, b: dist.StableWithLogProb(a + 1, b),
                unit(2),
                unit(2),
                observed=fixed(2),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case(
                "OneOneMatching by belief propagation",
                lambda x: dist.OneOneMatching(x, bp_iters=5),
                real(3, 3),
                observed=tensor(1, 0, 2).long(),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case(
                "OneTwoMatching by belief propagation",
                lambda x: dist.OneTwoMatching(x, bp_iters=5),
                real(4, 2),
                observed=tensor(1, 0, 0, 1).long(),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case(
                "Normalize",
                lambda m: dist.Normal(transforms.Normalize()(m), 1.0),
                real(3),
                observed=fixed(3),
            ),
            False,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        (
            case("NanMaskedNormal", dist.NanMaskedNormal, real(2), positive(2)),
            True,
            CannotCompile,
            _DATA_DEPENDENT,
        ),
        # Splines divide their argument by a mask.
        (pushed("Spline", lambda: transforms.spline(3, count_bins=4)), False, CannotCompile, _MASK),
        (
            pushed(
                "SplineAutoregressive",
                lambda: transforms.spline_autoregressive(3, [5], count_bins=4),
            ),
            False,
            CannotCompile,
            _MASK,
        ),
        (
            pushed("SplineCoupling", lambda: transforms.spline_coupling(3, hidden_dims=[5])),
            False,
            CannotCompile,
            _MASK,
        ),
        (
            pushed(
                "ConditionalSpline",
                given(lambda: transforms.conditional_spline(3, 2, [5], count_bins=4)),
            ),
            False,
            CannotCompile,
            _MASK,
        ),
        (
            pushed(
                "ConditionalSplineAutoregressive",
                given(
                    lambda: transforms.conditional_spline_autoregressive(3, 2, [5], count_bins=4)
                ),
            ),
            False,
            CannotCompile,
            _MASK,
        ),
        # Operators without a rule.
        (
            case(
                "DiscreteCosineTransform",
                transformed(transforms.DiscreteCosineTransform(), normals),
                real(4),
                positive(4),
            ),
            True,
            CannotCompile,
            "complex numbers",
        ),
        (
            case(
                "CumulativeDistributionTransform of a Gamma",
                lambda m: dist.Normal(
                    transforms.CumulativeDistributionTransform(dist.Gamma(2.0, 1.0))(m.exp()), 1.0
                ),
                real(2),
                observed=fixed(2),
            ),
            False,
            CannotCompile,
            "igamma",
        ),
        # Not the compiler's doing.
        (
            case("ProjectedNormal", dist.ProjectedNormal, real(3)),
            True,
            SiteError,
            _NO_BIJECTION,
        ),
        (
            case("VonMises3D", dist.VonMises3D, real(3)),
            True,
            SiteError,
            _NO_BIJECTION,
        ),
        (
            case(
                "LinearHMM",
                lambda a: dist.LinearHMM(
                    normals(zeros(2), 1.0),
                    a,
                    normals(zeros(2), 1.0),
                    torch.ones(2, 1, dtype=torch.float64),
                    normals(zeros(1), 1.0),
                    duration=4,
                ),
                real(2, 2),
                observed=fixed(4, 1),
            ),
            False,
            SiteError,
            "with a log density, got LinearHMM, which has none",
        ),
        (
            case(
                "Rejector of a latent",
                lambda m: dist.Rejector(dist.Normal(m, 1.0), lambda x: -softplus(-x), zeros(3)),
                real(3),
                observed=fixed(3),
            ),
            True,
            SiteError,
            "got Rejector, which does not",
        ),
        (
            case(
                "GaussianScaleMixture",
                dist.GaussianScaleMixture,
                positive(2),
                real(3),
                positive(3),
                observed=fixed(2),
            ),
            False,
            RuntimeError,
            "modified by an inplace operation",  # by its own log_prob, which has no gradient
        ),
    )
}
# Abstract classes, other names of distributions that are tested, and those without parameters.
_NOT_MET = {
    "Empirical",
    "ExponentialFamily",
    "ImproperUniform",  # every parameter above
    "LKJCorrCholesky",
    "TorchDistribution",
}
_TRANSFORMS_NOT_MET = {
    "CorrLCholeskyTransform",
    "ComposeTransformModule",
    "ConditionalGeneralizedChannelPermute",
    "GeneralizedChannelPermute",
    "Transform",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    one, latent, error, reason = REFUSED[name]
    with pytest.raises(error, match=reason):
        _lowered(one, latent=latent)


def _lowered(one: Case, *, latent: bool) -> None:
    density = LogDensity(_model([one], latent=latent), {})
    point = 0.3 * torch.ones(density.dim, dtype=torch.float64)
    lower(record(density.log_prob, point, is_known))


def _classes(module: Any, base: type) -> set[str]:
    members = ((name, getattr(module, name)) for name in module.__all__)
    return {name for name, one in members if inspect.isclass(one) and issubclass(one, base)}


def test_every_distribution_and_transform_is_met() -> None:
    names = {one.name for table in TABLES.values() for one in table} | set(REFUSED)
    met = {name.split(" ")[0] for name in names}
    unmet = _classes(dist, torch.distributions.Distribution) - met - _NOT_MET
    assert not unmet, sorted(unmet)
    unmet = _classes(transforms, torch.distributions.Transform) - met - _TRANSFORMS_NOT_MET
    assert not unmet, sorted(unmet)
