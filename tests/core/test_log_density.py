"""The log density against change of variables by hand, enumeration by hand, and its own batches."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy.stats import invwishart
from scipy.stats import wishart as wishart_law
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppl_gen.core import LogDensity, Pair, SiteError

Z = torch.zeros
C = dist.constraints
SUPPORTS: dict[str, Callable[[], Any]] = {
    "real": lambda: dist.Normal(Z(3), 2.0).to_event(1),
    "positive": lambda: dist.Gamma(torch.full((3,), 2.0), 1.5).to_event(1),
    # PyTorch says of the bijection to a non-negative support that its codomain is real.
    "nonnegative": lambda: dist.HalfCauchy(torch.full((3,), 5.0)).to_event(1),
    "interval": lambda: dist.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 2.5])).to_event(
        1
    ),
    "unit_interval": lambda: dist.Beta(2.0, torch.full((2,), 3.0)).to_event(1),
    "half_open": lambda: dist.Pareto(torch.full((2,), 1.5), 3.0).to_event(1),
    "simplex": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 0.5])),
    "ordered": lambda: dist.TransformedDistribution(
        dist.Normal(Z(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
    ),
    "positive_ordered": lambda: dist.ImproperUniform(C.positive_ordered_vector, (), (3,)),
    "softplus_positive": lambda: dist.ImproperUniform(C.softplus_positive, (), (2,)),
    "correlation": lambda: dist.LKJCholesky(3, 2.0),
    "correlation_matrix": lambda: dist.LKJ(3, 2.0),
    "positive_definite": lambda: dist.Wishart(torch.tensor(5.0), torch.eye(3) + 0.2),
    "lower_cholesky": lambda: dist.ImproperUniform(C.lower_cholesky, (), (3, 3)),
    "softplus_cholesky": lambda: dist.ImproperUniform(C.softplus_lower_cholesky, (), (3, 3)),
    "lower_triangular": lambda: dist.ImproperUniform(C.lower_triangular, (), (3, 3)),
    "unit_lower_cholesky": lambda: dist.ImproperUniform(C.unit_lower_cholesky, (), (3, 3)),
    "stacked": lambda: dist.ImproperUniform(C.stack([C.real, C.positive]), (), (2,)),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Gamma(torch.tensor([2.0, 9.0]), 1.5)
    ),
}


def jacobian_of(density: LogDensity, vector: torch.Tensor) -> torch.Tensor:
    """Return log |det| of the map to free coordinates of each support, by automatic derivatives."""

    def free(u: torch.Tensor) -> torch.Tensor:
        value = density.constrain(u)["z"]
        support = density.sites["z"].support
        if support is C.simplex:  # the last coordinate is one less the others
            return value[..., :-1]
        if value.ndim == 2:
            diagonal = support not in (C.corr_cholesky, C.corr_matrix, C.unit_lower_cholesky)
            index = torch.tril_indices(3, 3, 0 if diagonal else -1)
            return value[index[0], index[1]]
        return value.reshape(-1)

    return torch.linalg.slogdet(torch.autograd.functional.jacobian(free, vector)).logabsdet


@pytest.mark.parametrize("name", SUPPORTS)
def test_density_of_every_support_has_its_jacobian(name: str) -> None:
    density = LogDensity(lambda: pyro.sample("z", SUPPORTS[name]()), {})
    torch.manual_seed(1)
    vector = torch.randn(density.dim, dtype=torch.float64)
    value = density.constrain(vector)["z"]
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)
        try:
            expected = SUPPORTS[name]().log_prob(value) + jacobian_of(density, vector)
        finally:
            torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(density.log_prob(vector), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SUPPORTS)
def test_unconstrain_inverts_constrain(name: str) -> None:
    density = LogDensity(lambda: pyro.sample("z", SUPPORTS[name]()), {})
    vectors = torch.randn(2, 5, density.dim, dtype=torch.float64)
    values = density.constrain(vectors)
    assert values["z"].shape[:2] == (2, 5)
    if name != "stacked":  # which PyTorch cannot check in batches
        assert bool(density.sites["z"].support.check(values["z"]).all())
    torch.testing.assert_close(density.unconstrain(values), vectors, rtol=1e-6, atol=1e-6)


def test_support_that_depends_on_another_latent() -> None:
    def model() -> None:
        top = pyro.sample("top", dist.Exponential(1.0))
        pyro.sample("z", dist.Uniform(0.0, top))

    density = LogDensity(model, {})
    vectors = torch.randn(7, 2, dtype=torch.float64)
    values = density.constrain(vectors)
    assert bool((values["z"] < values["top"]).all())
    torch.testing.assert_close(density.unconstrain(values), vectors)
    # top = e^u, z = top sigmoid(v): p = e^-top / top and |J| = top * top s (1 - s).
    top, s = values["top"], torch.sigmoid(vectors[:, 1])
    expected = -top + torch.log(top) + torch.log(s * (1 - s))
    torch.testing.assert_close(density.log_prob(vectors), expected)


def test_plates_masks_scales_and_factors() -> None:
    y = torch.tensor([0.3, -1.0, 2.0])

    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.factor("extra", -3.0 * z)
        with pyro.plate("data", 3), poutine.scale(scale=2.0), poutine.mask(mask=y > 0):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    density = LogDensity(model, {"y": y})
    z = torch.tensor([0.7], dtype=torch.float64)
    normal = torch.distributions.Normal(z, 1.0)
    kept = y[y > 0].double()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() - 3 * z.sum()
    expected = expected + 2 * normal.log_prob(kept).sum()
    torch.testing.assert_close(density.log_prob(z), expected, rtol=1e-6, atol=1e-6)
    assert list(density.sites) == ["z"]


def mixture(y: torch.Tensor) -> None:
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_discrete_latents_are_summed_out_inside_a_scale(scale: float) -> None:
    y = torch.tensor([0.3, -1.0, 2.0])
    density = LogDensity(poutine.scale(mixture, scale), {"y": y})
    locs = torch.tensor([[-0.5, 1.5], [0.2, 0.1]], dtype=torch.float64)
    normal = torch.distributions.Normal(locs.unsqueeze(1), 1.0)
    joint = normal.log_prob(y.double().unsqueeze(-1)) + torch.tensor([0.3, 0.7]).double().log()
    prior = torch.distributions.Normal(0.0, 3.0).log_prob(locs).sum(-1)
    expected = scale * (prior + joint.logsumexp(-1).sum(-1))
    torch.testing.assert_close(density.log_prob(locs), expected, rtol=1e-6, atol=1e-6)


def test_batched_values_and_gradients_equal_single_ones() -> None:
    density = LogDensity(mixture, {"y": torch.tensor([0.3, -1.0, 2.0])})
    vectors = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (batched,) = torch.autograd.grad(density.log_prob(vectors).sum(), vectors)
    single = torch.stack(
        [torch.autograd.grad(density.log_prob(v), v)[0] for v in vectors.detach().requires_grad_()]
    )
    torch.testing.assert_close(batched, single)


def test_one_matrix_that_cannot_be_factored_says_nothing_of_the_others() -> None:
    runs = []

    def model() -> None:
        runs.append(None)
        x = pyro.sample("x", dist.Normal(0.0, 0.1))
        pyro.factor("f", torch.linalg.cholesky(torch.eye(2) * (1 - x))[0, 0])

    density = LogDensity(model, {})
    good = torch.tensor([[0.0], [0.5], [-1.0], [0.2]], dtype=torch.float64)
    bad = good.clone()
    bad[1] = 2.0
    for vectors in (good, bad, good):
        runs.clear()
        if vectors is bad:
            with pytest.raises(torch.linalg.LinAlgError):
                density.log_prob(vectors)
            continue
        scale = torch.tensor(0.1, dtype=torch.float64)
        expected = dist.Normal(0.0, scale).log_prob(vectors[:, 0]) + (1 - vectors[:, 0]).sqrt()
        torch.testing.assert_close(density.log_prob(vectors), expected)
        assert len(runs) <= 2  # all of them, and the first time one to compare with


def test_a_model_that_branches_on_a_value_runs_draw_by_draw() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("kink", z if z > 0 else -2.0 * z)

    density = LogDensity(model, {})
    vectors = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(vectors[:, 0])
    expected = expected + torch.tensor([2.0, 1.0])
    torch.testing.assert_close(density.log_prob(vectors), expected)


def test_wishart_and_inverse_wishart_against_scipy() -> None:
    """Two densities of a matrix, as SciPy has them, plus the Jacobian of its lower triangle."""
    scale = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 1.0]])
    inverse = torch.linalg.inv(torch.tensor(scale))

    def wishart() -> None:
        pyro.sample("s", dist.Wishart(torch.tensor(5.0), inverse.to(torch.get_default_dtype())))

    def inverse_wishart() -> None:
        s = pyro.sample("s", dist.ImproperUniform(C.positive_definite, (), (3, 3)))
        precision = torch.linalg.inv(s)
        log_prob = dist.Wishart(torch.tensor(5.0), inverse).log_prob(precision)
        pyro.factor("s_prior", log_prob + 4.0 * torch.logdet(precision))  # |d(1/S)/dS|, n + 1 = 4

    laws = {wishart: wishart_law(5, np.linalg.inv(scale)), inverse_wishart: invwishart(5, scale)}
    for model, law in laws.items():
        density = LogDensity(model, {})
        assert density.dim == 6
        for vector in torch.randn(3, 6, dtype=torch.float64):
            value = density.constrain(vector)["s"]

            def lower(x: torch.Tensor, density: LogDensity = density) -> torch.Tensor:
                return density.constrain(x)["s"][*torch.tril_indices(3, 3)]

            jacobian = torch.linalg.slogdet(torch.func.jacrev(lower)(vector)).logabsdet
            expected = law.logpdf(value.numpy()) + float(jacobian)
            assert float(density.log_prob(vector)) == pytest.approx(expected, rel=1e-6)


def test_lkj_against_its_beta_marginal() -> None:
    """Of a 2 x 2 correlation matrix, (r + 1) / 2 is Beta(eta, eta)."""

    def model() -> None:
        pyro.sample("r", dist.LKJ(2, 3.0))

    density = LogDensity(model, {})
    vectors = torch.tensor([[-1.5], [0.0], [0.7]], dtype=torch.float64)
    r = vectors[:, 0].tanh()
    torch.testing.assert_close(density.constrain(vectors)["r"][:, 1, 0], r)
    beta = torch.distributions.Beta(r.new_tensor(3.0), r.new_tensor(3.0))
    expected = beta.log_prob((r + 1) / 2) - math.log(2.0) + torch.log(1 - r**2)
    torch.testing.assert_close(density.log_prob(vectors), expected, rtol=1e-6, atol=1e-6)


def test_matrices_in_a_plate() -> None:
    def model() -> None:
        with pyro.plate("groups", 4):
            pyro.sample("s", dist.Wishart(torch.tensor(5.0), torch.eye(3)))

    def one() -> None:
        pyro.sample("s", dist.Wishart(torch.tensor(5.0), torch.eye(3)))

    density, alone = LogDensity(model, {}), LogDensity(one, {})
    assert density.dim == 24
    vectors = torch.randn(5, 24, dtype=torch.float64)
    assert density.constrain(vectors)["s"].shape == (5, 4, 3, 3)
    torch.testing.assert_close(density.unconstrain(density.constrain(vectors)), vectors)
    expected = alone.log_prob(vectors.reshape(20, 6)).reshape(5, 4).sum(-1)
    torch.testing.assert_close(density.log_prob(vectors), expected)


def test_nested_plates_by_hand() -> None:
    """A latent for each column, one for each cell, data for some of the rows."""
    y = torch.tensor([[0.1, -0.4], [1.3, 0.2], [0.0, 2.2]])

    def model(y: torch.Tensor) -> None:
        columns = pyro.plate("columns", 2, dim=-1)
        with columns:
            mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with columns, pyro.plate("rows", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    density = LogDensity(model, {"y": y})
    assert density.dim == 8
    vector = torch.randn(8, dtype=torch.float64)
    expected = 0.0
    normal = torch.distributions.Normal
    for column in range(2):
        mean = vector[column]
        expected = expected + normal(0.0, 2.0).log_prob(mean)
        for row in range(3):
            z = vector[2 + 2 * row + column]
            expected = expected + normal(mean, 1.0).log_prob(z)
            expected = expected + normal(z, 0.5).log_prob(y[row, column].double())
    torch.testing.assert_close(density.log_prob(vector), expected)


def test_sites_that_come_and_go_are_refused() -> None:
    """By chance of the two first runs, or later, where the value of another site decides."""

    def model(extra: Callable[[torch.Tensor], bool]) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if extra(z):
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))

    calls: list[int] = []

    def second(_: torch.Tensor) -> bool:
        calls.append(1)
        return len(calls) == 2

    with pytest.raises(SiteError, match=r"'sometimes'.*same latent sites.*torch\.where"):
        LogDensity(lambda: model(second), {})
    density = LogDensity(lambda: model(lambda z: bool(z > 9)), {})
    assert torch.isfinite(density.log_prob(torch.zeros(1, dtype=torch.float64)))
    with pytest.raises(SiteError, match=r"'sometimes'"):
        density.log_prob(torch.tensor([10.0], dtype=torch.float64))
    density = LogDensity(lambda: model(lambda z: bool(z < 9)), {})
    with pytest.raises(SiteError, match=r"'sometimes'"):
        density.log_prob(torch.tensor([10.0, 0.0], dtype=torch.float64))
    with pytest.raises(SiteError, match=r"'sometimes'"):
        density.log_prob(torch.tensor([[10.0, 0.0], [11.0, 0.0]], dtype=torch.float64))


class _NoNumbers(TorchDispatchMode):
    """Fails where a number that depends on a vector is read out of a tensor."""

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__()
        self.dependent = [vector]  # kept alive, so that no id is used twice
        self.ids = {id(vector)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if any(id(value) in self.ids for value in tree_leaves((args, kwargs))):
            assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read"
            self.dependent += [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            self.ids |= {id(x) for x in self.dependent}
        return out


def test_the_watch_on_numbers_sees_them() -> None:
    """Negative control."""
    x = torch.ones(2)
    with _NoNumbers(x):
        torch.ones(2).sum().item()
    with pytest.raises(AssertionError, match="a number was read"), _NoNumbers(x):
        (3 * x).sum().item()


def everything(y: torch.Tensor) -> None:
    """A site of every support, and a discrete latent."""
    for name, make in SUPPORTS.items():
        pyro.sample(name, make())
    locs = pyro.sample("locs", dist.Normal(y.new_zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(y.new_tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)


def test_one_call_is_pure_and_reads_no_number() -> None:
    density = LogDensity(everything, {"y": torch.tensor([0.3, -1.0, 2.0])})
    vector = (0.3 * torch.randn(density.dim, dtype=torch.float64)).requires_grad_()
    state = torch.get_rng_state()
    with _NoNumbers(vector):
        value = density.log_prob(vector)
        (gradient,) = torch.autograd.grad(value, vector)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(density.log_prob(vector), value)
    assert bool(torch.isfinite(gradient).all())
    # And all of it together with other vectors: every operator has a batching rule.
    vectors = vector.detach().repeat(3, 1)
    torch.testing.assert_close(density.log_prob(vectors), value.detach().expand(3))
    assert density._batchable


def test_improper_prior_has_density_zero_on_its_support() -> None:
    def model() -> None:
        pyro.sample("z", dist.ImproperUniform(dist.constraints.positive, (), (2,)))

    density = LogDensity(model, {})
    vector = torch.tensor([0.5, -2.0], dtype=torch.float64)
    torch.testing.assert_close(density.log_prob(vector), vector.sum())


class Linear(Pair):
    """A pair with a float32 parameter, a plain tensor and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.offset = torch.tensor([1.0, 2.0])

    def model(self, y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(self.layer(z + self.offset), 1.0), obs=y)


def test_data_modules_and_constants_are_cast_and_the_pair_is_left_alone() -> None:
    pair = Linear()
    density = LogDensity(pair, {"y": torch.zeros(3)})
    value = density.log_prob(torch.zeros(2, dtype=torch.float64))
    assert value.dtype == torch.float64
    assert pair.layer.weight.dtype == pair.offset.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_a_tensor_of_another_dtype_is_named() -> None:
    closed_over = torch.ones(3)

    def model() -> None:
        pyro.sample("z", dist.Normal(closed_over, 1.0).to_event(1))

    with pytest.raises(SiteError, match=r"'closed_over'.*float64.*Pass it in as data"):
        LogDensity(model, {})
    assert LogDensity(model, {}, dtype=torch.float32).dim == 3


def test_what_cannot_become_a_density_is_refused() -> None:
    def subsampled(y: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match="plate 'data' subsamples 3 of 10"):
        LogDensity(subsampled, {"y": torch.zeros(3)})
    with pytest.raises(ValueError, match="no continuous latent"):
        LogDensity(lambda: pyro.sample("k", dist.Bernoulli(0.5)), {})
    with pytest.raises(SiteError, match=r"'z'.*bijection"):
        LogDensity(lambda: pyro.sample("z", dist.ProjectedNormal(torch.ones(2))), {})
    with pytest.raises(SiteError, match=r"'z'.*Sphere.*x / x\.norm\(\)"):
        LogDensity(lambda: pyro.sample("z", dist.VonMises3D(torch.ones(3))), {})
    uniform = dist.Uniform(torch.zeros(2), torch.ones(2))
    mixed = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), uniform)
    with pytest.raises(SiteError, match=r"'z'.*different supports"):
        LogDensity(lambda: pyro.sample("z", mixed), {}, dtype=torch.float32)


def test_eight_schools_evidence_by_quadrature() -> None:
    """mu and the effects integrate out in closed form; tau by quadrature over the density itself.

    The evidence -31.31135 is a published quadrature of the same model.
    """
    from ppl_gen.models import EightSchools

    data = EightSchools.data()
    density = LogDensity(EightSchools(centered=False), data)
    sigma, y = (data[n].double() for n in ("sigma", "y"))
    grid = torch.linspace(-9.0, 7.0, 1601, dtype=torch.float64)
    terms = []
    for u in grid[::40]:
        # The density is Gaussian in (mu, z) at a fixed tau: Laplace's formula is exact there.
        def at(v: torch.Tensor, u: torch.Tensor = u) -> torch.Tensor:
            return density.log_prob(torch.cat([v[:1], u.reshape(1), v[1:]]))

        origin = torch.zeros(9, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(at, origin)
        gradient = torch.autograd.functional.jacobian(at, origin)
        mode = -torch.linalg.solve(hessian, gradient)
        log_det = torch.linalg.slogdet(-hessian).logabsdet
        terms.append(at(mode) + 4.5 * math.log(2 * math.pi) - 0.5 * log_det)
    # The integrand is smooth and vanishes at both ends: the trapezoid rule converges fast.
    evidence = torch.logsumexp(torch.stack(terms), 0) + math.log(16 / 40)
    assert evidence == pytest.approx(-31.31135, abs=2e-3)
    assert sigma.shape == y.shape


def test_a_distribution_without_a_support_is_named() -> None:
    """Some of Pyro's do not say which values they have."""

    def scale_mixture() -> Any:
        return dist.GaussianScaleMixture(torch.ones(2), torch.zeros(2), torch.tensor([1.0, 2.0]))

    def latent() -> None:
        pyro.sample("z", scale_mixture())

    expected = r"site 'z': .* `support` .* got GaussianScaleMixture, which does not"
    with pytest.raises(SiteError, match=expected):
        LogDensity(latent, {})

    def observed(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", scale_mixture(), obs=y - mean)

    y = torch.tensor([0.3, -0.5], dtype=torch.float64)
    density = LogDensity(observed, {"y": y})
    normals = [dist.Normal(torch.zeros(2), s).to_event(1) for s in (1.0, 2.0)]
    mixture = torch.stack([normal.log_prob(y).double() for normal in normals]).logsumexp(0)
    prior = normals[0].log_prob(torch.zeros(2))
    torch.testing.assert_close(
        density.log_prob(torch.zeros(2)), mixture - math.log(2) + prior, check_dtype=False
    )


def test_a_discrete_latent_without_end_is_refused() -> None:
    """It would be drawn anew in every call, and the density be a random number."""

    def model(y: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            count = pyro.sample("count", dist.Poisson(rate))
            pyro.sample("y", dist.Normal(count, 1.0), obs=y)

    with pytest.raises(SiteError, match=r"'count'.*got Poisson"):
        LogDensity(model, {"y": torch.ones(2)})


def test_a_site_that_asks_for_sequential_enumeration_is_summed_out_too() -> None:
    def model(y: torch.Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(p), infer={"enumerate": "sequential"})
        pyro.sample("y", dist.Normal(5.0 * k, 1.0), obs=y)

    density = LogDensity(model, {"y": torch.tensor(5.0)})
    # At p = 1/2 the prior's log density is 0 and the log-Jacobian log(1/4).
    expected = math.log(0.25) + math.log(0.5 * (1 + math.exp(-12.5))) - 0.5 * math.log(2 * math.pi)
    assert density.log_prob(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(expected)


def test_priors_made_beforehand_in_another_dtype_are_cast() -> None:
    """The prior of a `PyroSample` is made with the module, in the default dtype of then."""
    module = PyroModule[torch.nn.Linear](2, 1)
    module.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
    module.bias = PyroParam(torch.tensor([0.5]), constraint=dist.constraints.positive)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        mean = module(x)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    x, y = torch.randn(4, 2), torch.randn(4)
    density = LogDensity(model, {"x": x, "y": y})
    vector = torch.tensor([0.3, -0.7], dtype=torch.float64)
    standard = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    residuals = y.double() - x.double() @ vector - 0.5
    expected = standard.log_prob(vector).sum() + standard.log_prob(residuals).sum()
    torch.testing.assert_close(density.log_prob(vector), expected)


def test_no_generator_is_left_changed() -> None:
    """A density is built with draws of its own, from Python's and NumPy's generators as well."""

    class Random(Pair):
        def prepare(self, y: torch.Tensor) -> dict[str, Any]:
            return {"y": y + random.random() + np.random.rand()}

        def model(self, y: torch.Tensor) -> None:
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    before = random.getstate(), np.random.get_state()[1].tolist()
    LogDensity(Random(), {"y": torch.tensor(1.0)})
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
