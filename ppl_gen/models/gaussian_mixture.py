"""A Bayesian mixture of normal distributions, its assignments summed out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from ppl_gen.core.errors import SiteError, check_count, unknown
from ppl_gen.core.pair import Pair
from ppl_gen.core.posterior import Posterior
from ppl_gen.models.checks import check_features, check_positive
from ppl_gen.models.relabelling import align, permute

if TYPE_CHECKING:
    from ppl_gen.models.mixture_em import MixtureSteps

__all__ = ["GaussianMixture", "component_log_prob"]

_COVARIANCES = ("diagonal", "full")
# Numbers that a chunk of draws may take, so that many draws of much data fit into memory.
_CHUNK_ELEMENTS = 2**24

Draws = Mapping[str, torch.Tensor]
LogProb = Callable[[torch.Tensor], torch.Tensor]
Conditional = Callable[[Draws], TorchDistributionMixin | LogProb]


def component_log_prob(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    r"""Return the joint log density of each point and each component it may come from.

    .. math::
        \log \pi_k + \log \mathrm{Normal}(x_i \mid \mu_k, \Sigma_k), \qquad
        \Sigma_k = \mathrm{diag}(s_k)\, L_k L_k^T\, \mathrm{diag}(s_k),

    with :math:`L_k` the Cholesky factor of the correlations, the identity where there is none.

    Args:
        x: Points, of shape `(n, num_features)`.
        draws: Values by site: "weights" `(*batch, K)`, "locs" and "scales"
            `(*batch, K, num_features)` and, for full covariances, "correlation_cholesky"
            `(*batch, K, num_features, num_features)`.

    Returns:
        Log densities of shape `(*batch, n, K)`. Their logsumexp over `K` is the log density of a
        point, and their softmax its responsibilities.

    Example:
        >>> one = {"weights": torch.ones(1), "locs": torch.zeros(1, 2), "scales": torch.ones(1, 2)}
        >>> round(float(component_log_prob(torch.zeros(1, 2), one)), 4)  # -log(2 pi)
        -1.8379
    """
    scales = draws["scales"]
    x = x.to(scales.dtype)
    # (*batch, K, n, D): one triangular solve for each component serves all points.
    standard = (x - draws["locs"].unsqueeze(-2)) / scales.unsqueeze(-2)
    log_volume = scales.log().sum(-1)
    if "correlation_cholesky" in draws:
        tril = draws["correlation_cholesky"]
        standard = torch.linalg.solve_triangular(tril, standard.mT, upper=False).mT
        log_volume = log_volume + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = log_volume + 0.5 * x.shape[-1] * math.log(2.0 * math.pi)
    normal = -0.5 * standard.square().sum(-1).mT - constant.unsqueeze(-2)
    return draws["weights"].log().unsqueeze(-2) + normal


class GaussianMixture(Pair):
    r"""A mixture of normal distributions.

    For each component `k` of `K` and each point `i`

    .. math::
        \pi &\sim \mathrm{Dirichlet}(\mathrm{weights\_concentration}, \ldots), \\
        \mu_{kd} &\sim \mathrm{Normal}(0, \mathrm{locs\_scale}), \\
        s_{kd} &\sim \mathrm{LogNormal}(\log \mathrm{scales\_median}, \mathrm{scales\_spread}), \\
        L_k &\sim \mathrm{LKJCholesky}(\mathrm{correlation\_concentration})
            \quad \text{(full covariance)}, \\
        z_i &\sim \mathrm{Categorical}(\pi), \\
        x_i &\sim \mathrm{Normal}(\mu_{z_i}, \mathrm{diag}(s_{z_i}) L_{z_i}).

    The defaults are made for data that are standardised to mean 0 and standard deviation 1. The
    prior keeps weights and scales away from zero, where the likelihood of a mixture is unbounded.

    The assignments `z` are summed out by every method. The components have no order, so that the
    posterior is the same under each of the `K!` permutations of their labels: chains settle in
    different ones, and guides pick one. Quantities that know no labels (`predictive_log_prob`,
    the assignment of two points to one component) can be compared at once; weights, locations,
    scales and responsibilities only after `relabel`.

    Sites: "weights" `(K,)`; in the plate "components" "locs" and "scales" `(K, num_features)` and,
    for full covariances of more than one feature, "correlation_cholesky"
    `(K, num_features, num_features)`; in the plate "data" the discrete "assignment" and "x",
    observed.

    Args:
        num_components: Number of components `K`.
        num_features: Number of dimensions of a point.
        covariance: "diagonal" or "full".
        weights_concentration: Concentration of the Dirichlet prior, the same for each component.
        locs_scale: Prior standard deviation of the locations.
        scales_median: Prior median of the scales within a component.
        scales_spread: Prior standard deviation of the logarithm of those scales.
        correlation_concentration: Concentration of the LKJ prior of the correlations; 1 is
            uniform over correlation matrices, larger values favour small correlations.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size, scale or concentration is not positive, or `covariance` unknown.

    References:
        Stephens, Dealing with label switching in mixture models (2000), Journal of the Royal
        Statistical Society B 62(4), 795-809.
        Lewandowski, Kurowicka and Joe, Generating random correlation matrices based on vines and
        extended onion method (2009), Journal of Multivariate Analysis 100(9), 1989-2001.

    Example:
        >>> pair = GaussianMixture(num_components=3, num_features=2, covariance="full")
        >>> pair.model(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        num_components: int,
        num_features: int,
        *,
        covariance: str = "diagonal",
        weights_concentration: float = 2.0,
        locs_scale: float = 1.5,
        scales_median: float = 0.5,
        scales_spread: float = 0.5,
        correlation_concentration: float = 2.0,
    ) -> None:
        super().__init__()
        check_count("num_components", num_components)
        check_count("num_features", num_features)
        check_positive("weights_concentration", weights_concentration)
        check_positive("locs_scale", locs_scale)
        check_positive("scales_median", scales_median)
        check_positive("scales_spread", scales_spread)
        check_positive("correlation_concentration", correlation_concentration)
        if covariance not in _COVARIANCES:
            raise unknown("covariance", covariance, _COVARIANCES)
        self.num_components = num_components
        self.num_features = num_features
        self.covariance = covariance
        self.weights_concentration = weights_concentration
        self.locs_scale = locs_scale
        self.scales_median = scales_median
        self.scales_spread = scales_spread
        self.correlation_concentration = correlation_concentration

    def validate(self, x: torch.Tensor) -> None:
        """Check the shape of the data.

        Args:
            x: Points, of shape `(n, num_features)`.

        Raises:
            SiteError: If shape or dtype are wrong.
        """
        check_features("x", x, self.num_features)

    def model(self, x: torch.Tensor) -> torch.Tensor:
        """Run the generative story of the class once.

        Args:
            x: Points, of shape `(n, num_features)`.

        Returns:
            The points.
        """
        priors = self._priors(x)
        weights = pyro.sample("weights", priors.pop("weights"))
        with pyro.plate("components", self.num_components):
            values = {name: pyro.sample(name, prior) for name, prior in priors.items()}
        with pyro.plate("data", len(x)):
            assignment = pyro.sample(
                "assignment", dist.Categorical(weights), infer={"enumerate": "parallel"}
            )
            loc, scale = values["locs"][assignment], values["scales"][assignment]
            if "correlation_cholesky" in values:
                tril = scale.unsqueeze(-1) * values["correlation_cholesky"][assignment]
                component = dist.MultivariateNormal(loc, scale_tril=tril)
            else:
                component = dist.Normal(loc, scale).to_event(1)
            sampled: torch.Tensor = pyro.sample("x", component, obs=x)
        return sampled

    def log_joint(self, draws: Draws, x: torch.Tensor) -> torch.Tensor:
        """Return the log density of latent values and data, the assignments summed out.

        Args:
            draws: Values by site, of shape `(*batch, *site)`.
            x: Points, of shape `(n, num_features)`.

        Returns:
            Log densities of shape `(*batch,)`, no Jacobian of a transformation in them.
        """
        batch = draws["weights"].shape[:-1]
        flat = {name: draws[name].flatten(0, len(batch) - 1) for name in self._sites}
        if not batch:
            flat = {name: draws[name].unsqueeze(0) for name in self._sites}
        chunks = [
            component_log_prob(x, chunk).logsumexp(-1).sum(-1) for chunk in self._chunks(flat, x)
        ]
        return (torch.cat(chunks) + self.log_prior(flat)).reshape(batch)

    def log_prior(self, draws: Draws) -> torch.Tensor:
        """Return the prior log density of latent values.

        Args:
            draws: Values by site, of shape `(*batch, *site)`.

        Returns:
            Log densities of shape `(*batch,)`.
        """
        batch = draws["weights"].shape[:-1]
        terms = [
            prior.log_prob(draws[name]).reshape(*batch, -1).sum(-1)
            for name, prior in self._priors(draws["scales"]).items()
        ]
        return torch.stack(terms).sum(0)

    def conditionals(self, x: torch.Tensor) -> dict[str, Conditional]:
        r"""Return the distribution of each latent site given the others, for `Gibbs`.

        With :math:`n_k` points assigned to component `k`,

        .. math::
            p(z_i = k \mid \ldots) &\propto
                \pi_k \prod_d \mathrm{Normal}(x_{id} \mid \mu_{kd}, s_{kd}), \\
            \pi \mid z &\sim \mathrm{Dirichlet}(\alpha + n_1, \ldots, \alpha + n_K), \\
            \mu_{kd} \mid z, s &\sim \mathrm{Normal}\Bigl(
                \frac{\sum_{i: z_i = k} x_{id} / s_{kd}^2}{p_{kd}}, p_{kd}^{-1/2}\Bigr), \qquad
                p_{kd} = \frac{n_k}{s_{kd}^2} + \frac{1}{\mathrm{locs\_scale}^2}, \\
            \log p(s_{kd} \mid z, \mu) &= \log \mathrm{LogNormal}(s_{kd}) - n_k \log s_{kd}
                - \frac{1}{2 s_{kd}^2} \sum_{i: z_i = k} (x_{id} - \mu_{kd})^2 + \mathrm{const}.

        The last one is no distribution with a name; it is log-concave in :math:`\log s_{kd}`.

        Args:
            x: Points, of shape `(n, num_features)`.

        Returns:
            By site, in the order of a sweep, a function from values of all sites, with an axis of
            chains in front, to a distribution or, for the scales, an elementwise log density.

        Raises:
            ValueError: If the covariances are full: correlations have no conjugate prior here.

        References:
            Diebolt and Robert, Estimation of finite mixture distributions through Bayesian
            sampling (1994), Journal of the Royal Statistical Society B 56(2), 363-375.
        """
        if "correlation_cholesky" in self._sites:
            msg = (
                "a GaussianMixture with covariance='full' has no conditionals for Gibbs: those of "
                "'correlation_cholesky' are not conjugate. Use NUTS(), or covariance='diagonal'."
            )
            raise ValueError(msg)

        def members(values: Draws) -> torch.Tensor:
            """Return which points are whose, as zeros and ones `(chain, K, n)`."""
            components = torch.arange(self.num_components, device=x.device).unsqueeze(-1)
            return (values["assignment"].unsqueeze(-2) == components).to(x.dtype)

        def total(member: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
            """Return sums over the members of a component, `(chain, K, num_features)`."""
            return (member.unsqueeze(-2) @ each).squeeze(-2)

        def assignment(values: Draws) -> TorchDistributionMixin:
            return dist.Categorical(logits=component_log_prob(x, values))

        def weights(values: Draws) -> TorchDistributionMixin:
            return dist.Dirichlet(self.weights_concentration + members(values).sum(-1))

        def locs(values: Draws) -> TorchDistributionMixin:
            member, square = members(values), values["scales"].square()
            precision = member.sum(-1, keepdim=True) / square + self.locs_scale**-2
            return dist.Normal(total(member, x) / (square * precision), precision.rsqrt())

        def scales(values: Draws) -> LogProb:
            member = members(values)
            deviation = x - values["locs"].unsqueeze(-2)
            squares = total(member, deviation.square())
            counts = member.sum(-1, keepdim=True)

            def log_prob(value: torch.Tensor) -> torch.Tensor:
                log_scale = value.log()
                standard = (log_scale - math.log(self.scales_median)) / self.scales_spread
                likelihood = counts * log_scale + 0.5 * squares / value.square()
                return -log_scale - 0.5 * standard.square() - likelihood

            return log_prob

        return {"assignment": assignment, "weights": weights, "locs": locs, "scales": scales}

    def em_steps(self, priors: bool, /, x: torch.Tensor) -> MixtureSteps | None:
        """Return the E and M steps for `EM`, where they have a closed form.

        That is under maximum likelihood, and with priors where the covariances are diagonal. With
        priors and full covariances the joint density has modes, but no bound: where enough points
        lie in a plane the correlations of a component may become singular.

        Args:
            priors: Whether to maximise the log joint density, or the likelihood.
            x: Points, of shape `(n, num_features)`.

        Returns:
            The steps, or None.

        Raises:
            SiteError: If `x` has fewer rows than there are components, or, for maximum likelihood,
                a constant column.
            ValueError: If the prior of the weights has no mode.
        """
        from ppl_gen.models.mixture_em import MixtureSteps

        self._check_for_em(priors, x)
        if priors and "correlation_cholesky" in self._sites:
            return None
        return MixtureSteps(self, x, priors=priors)

    def _check_for_em(self, priors: bool, x: torch.Tensor) -> None:
        """Refuse data and priors without a maximum."""
        if len(x) < self.num_components:
            raise SiteError(
                "x",
                expected=f"at least one row for each of {self.num_components} components",
                got=f"{len(x)} rows",
                remedy=f"Create the pair with num_components={len(x)} or fewer.",
                what="data",
            )
        if priors and self.weights_concentration < 1:
            msg = (
                f"weights_concentration={self.weights_concentration}: the prior is unbounded where "
                "a weight is zero, so that there is no mode. Give 1 or more, or take "
                'EM(estimate="maximum_likelihood").'
            )
            raise ValueError(msg)

    def responsibilities(
        self, posterior: Posterior, x: torch.Tensor, *, average: bool = False
    ) -> torch.Tensor:
        """Return the probability that each point came from each component.

        Args:
            posterior: A posterior of this pair. Components keep its labels, so that an average
                over draws has a meaning only after `relabel`.
            x: Points, of shape `(n, num_features)`: the data, or any others.
            average: Average over chains and draws, without ever holding them all.

        Returns:
            Probabilities of shape `(chain, draw, n, K)`, or `(n, K)` where averaged.

        Raises:
            ValueError: If the posterior is none of such a mixture.
            SiteError: If `x` has a wrong shape.
        """
        shape, flat, x = self._flatten(posterior, x)
        parts = (component_log_prob(x, chunk).softmax(-1) for chunk in self._chunks(flat, x))
        if average:
            return torch.stack([part.sum(0) for part in parts]).sum(0) / len(flat["weights"])
        return torch.cat(list(parts)).reshape(*shape, len(x), self.num_components)

    def sample_assignments(
        self, posterior: Posterior, x: torch.Tensor, *, seed: int = 0
    ) -> torch.Tensor:
        """Draw the component of each point, for each draw of the posterior.

        Args:
            posterior: A posterior of this pair.
            x: Points, of shape `(n, num_features)`.
            seed: Seed of their own generator.

        Returns:
            Components, int64, of shape `(chain, draw, n)`.

        Raises:
            ValueError: If the posterior is none of such a mixture.
            SiteError: If `x` has a wrong shape.
        """
        generator = torch.Generator().manual_seed(seed)
        shape, flat, x = self._flatten(posterior, x)
        parts = [
            torch.multinomial(
                component_log_prob(x, chunk).softmax(-1).flatten(0, 1), 1, generator=generator
            )
            for chunk in self._chunks(flat, x)
        ]
        return torch.cat(parts).reshape(*shape, len(x))

    def predictive_log_prob(self, posterior: Posterior, x: torch.Tensor) -> torch.Tensor:
        """Return the log density of the posterior predictive distribution.

        It does not depend on labels.

        Args:
            posterior: A posterior of this pair.
            x: Points, of shape `(n, num_features)`.

        Returns:
            Log densities of shape `(n,)`: of the densities' average over chains and draws.

        Raises:
            ValueError: If the posterior is none of such a mixture.
            SiteError: If `x` has a wrong shape.
        """
        _, flat, x = self._flatten(posterior, x)
        parts = [
            component_log_prob(x, chunk).logsumexp(-1).logsumexp(0)
            for chunk in self._chunks(flat, x)
        ]
        return torch.stack(parts).logsumexp(0) - math.log(len(flat["weights"]))

    def relabel(
        self,
        posterior: Posterior,
        like: Posterior | None = None,
        *,
        x: torch.Tensor | None = None,
    ) -> Posterior:
        """Return a posterior whose components mean the same in every draw.

        The draw of highest log density is the pivot; its components are sorted by their first
        coordinate. In every other draw they are permuted so that the responsibilities agree best
        with the pivot's (equivalence classes representatives). All sites of a draw follow one
        permutation, so that the draw's density is what it was. Draws that a guide makes later
        (`posterior.sample`) are not relabelled.

        Args:
            posterior: A posterior of this pair.
            like: A relabelled posterior of the same data by another method, whose labels are
                taken over.
            x: The data, where the posterior does not hold them.

        Returns:
            The posterior with its draws relabelled.

        Raises:
            ValueError: If a posterior is none of such a mixture, or there are no data.

        References:
            Papastamoulis and Iliopoulos, An artificial allocations based solution to the label
            switching problem in Bayesian analysis of mixtures of distributions (2010), Journal of
            Computational and Graphical Statistics 19(2), 313-331.
        """
        points = self._data(posterior) if x is None else x
        shape, flat, points = self._flatten(posterior, points)
        pivot = self._pivot(flat if like is None else self._flatten(like, points)[1], points)
        if like is None:
            order = pivot["locs"][:, 0].argsort()
            pivot = {name: value[order] for name, value in pivot.items()}
        target = component_log_prob(points, pivot).softmax(-1).double()
        order = torch.cat(
            [
                align(component_log_prob(points, chunk).softmax(-1).double(), target)
                for chunk in self._chunks(flat, points)
            ]
        )
        relabelled = {
            name: permute(value, order).reshape(*shape, *value.shape[1:])
            for name, value in flat.items()
        }
        return dataclasses.replace(posterior, draws={**posterior.draws, **relabelled})

    @property
    def _sites(self) -> tuple[str, ...]:
        sites = ("weights", "locs", "scales")
        full = self.covariance == "full" and self.num_features > 1
        return (*sites, "correlation_cholesky") if full else sites

    def _priors(self, like: torch.Tensor) -> dict[str, TorchDistributionMixin]:
        """Return the priors; all but that of the weights are of one component."""
        zeros = like.new_zeros(self.num_features)
        priors: dict[str, TorchDistributionMixin] = {
            "weights": dist.Dirichlet(
                like.new_full((self.num_components,), self.weights_concentration)
            ),
            "locs": dist.Normal(zeros, self.locs_scale).to_event(1),
            "scales": dist.LogNormal(
                zeros + math.log(self.scales_median), self.scales_spread
            ).to_event(1),
        }
        if "correlation_cholesky" in self._sites:
            priors["correlation_cholesky"] = dist.LKJCholesky(
                self.num_features, like.new_full((), self.correlation_concentration)
            )
        return priors

    def _flatten(
        self, posterior: Posterior, x: torch.Tensor
    ) -> tuple[tuple[int, int], dict[str, torch.Tensor], torch.Tensor]:
        """Return (chain, draw), the draws with both axes in one, and the points on the CPU."""
        expected = (self.num_components, self.num_features)
        missing = [name for name in self._sites if name not in posterior.draws]
        if missing or tuple(posterior.draws["locs"].shape[2:]) != expected:
            got = {name: tuple(value.shape[2:]) for name, value in posterior.draws.items()}
            msg = (
                f"expected a posterior of a mixture of {expected[0]} components in {expected[1]} "
                f"dimensions with the sites {', '.join(self._sites)}, got one with {got}. Call "
                "the method of the pair that was fitted, posterior.pair."
            )
            raise ValueError(msg)
        x = torch.as_tensor(x)
        self.validate(x)
        shape = (posterior.num_chains, posterior.num_draws)
        flat = {name: posterior.draws[name].flatten(0, 1) for name in self._sites}
        return shape, flat, x.detach().cpu()

    def _chunks(
        self, flat: dict[str, torch.Tensor], x: torch.Tensor
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield draws in chunks that fit into memory together with the points."""
        each = len(x) * self.num_components * self.num_features
        size = max(1, _CHUNK_ELEMENTS // each)
        for start in range(0, len(flat["weights"]), size):
            yield {name: value[start : start + size] for name, value in flat.items()}

    def _pivot(self, flat: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
        best = int(self.log_joint(flat, x).argmax())
        return {name: value[best] for name, value in flat.items()}

    def _data(self, posterior: Posterior) -> torch.Tensor:
        if posterior.data is None or "x" not in posterior.data:
            msg = (
                "relabelling looks at the data, and this posterior holds none. Pass them: "
                "relabel(posterior, x=x)."
            )
            raise SiteError("x", expected="data", got="none", remedy=msg)
        x: torch.Tensor = posterior.data["x"]
        return x
