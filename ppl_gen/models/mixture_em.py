"""The E and M steps of a mixture of normal distributions, in closed form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import one_hot

from ppl_gen.core.errors import SiteError
from ppl_gen.models.gaussian_mixture import component_log_prob

if TYPE_CHECKING:
    from ppl_gen.models.gaussian_mixture import GaussianMixture

__all__ = ["MixtureSteps"]

Values = Mapping[str, torch.Tensor]

# The least variance within a component, of that of the data: a thousandth of their scale.
_LEAST_VARIANCE = 1e-6
# A component that explains fewer points, by underflow, stays where it is.
_NO_POINTS = 1e-200


class MixtureSteps:
    r"""What EM needs of a `GaussianMixture`: a start, the E step and the M step.

    With responsibilities :math:`r_{ik}`, counts :math:`n_k = \sum_i r_{ik}` and squares
    :math:`S_{kd} = \sum_i r_{ik} (x_{id} - \mu_{kd})^2` the M step of maximum likelihood is

    .. math::
        \pi_k = n_k / n, \qquad \mu_k = \sum_i r_{ik} x_i / n_k, \qquad
        \Sigma_k = \sum_i r_{ik} (x_i - \mu_k)(x_i - \mu_k)^T / n_k,

    where eigenvalues of :math:`\Sigma_k`, in units of the data's standard deviations, are raised
    to 1e-6: that is the exact maximum over covariances that are nowhere narrower, among which the
    likelihood is bounded and never decreases. Covariances of wider components are not touched.

    Under the priors (diagonal covariances) weights, locations and scales are maximised one after
    the other, each given the newest of the others,

    .. math::
        \pi_k &\propto n_k + \mathrm{weights\_concentration} - 1, \\
        \mu_{kd} &= \frac{\sum_i r_{ik} x_{id} / s_{kd}^2}
            {n_k / s_{kd}^2 + 1 / \mathrm{locs\_scale}^2}, \\
        S_{kd} / s_{kd}^2 &= 1 + n_k +
            \frac{\log s_{kd} - \log \mathrm{scales\_median}}{\mathrm{scales\_spread}^2},

    the last of which Wright's omega function solves.

    Args:
        pair: The pair.
        x: Points, of shape `(n, num_features)`.
        priors: Whether to maximise the log joint density, or the likelihood.

    References:
        Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm
        (1977), Journal of the Royal Statistical Society B 39(1), 1-38.
        Meng and Rubin, Maximum likelihood estimation via the ECM algorithm (1993), Biometrika
        80(2), 267-278.
        Corless, Gonnet, Hare, Jeffrey and Knuth, On the Lambert W function (1996), Advances in
        Computational Mathematics 5, 329-359.
    """

    def __init__(self, pair: GaussianMixture, x: torch.Tensor, *, priors: bool) -> None:
        self.pair = pair
        self.x = x
        self.priors = priors
        self.full = pair.covariance == "full" and pair.num_features > 1
        self.deviation = (x - x.mean(0)).square().mean(0).sqrt()
        constant = (self.deviation == 0).nonzero().flatten().tolist()
        if constant and not priors:
            raise SiteError(
                "x",
                expected="features that vary, or their variance within a component has no bound",
                got=f"the same value everywhere in column {', '.join(map(str, constant))}",
                remedy='Leave such columns out, or take EM(estimate="map").',
                what="data",
            )

    def start(self) -> Values:
        """Return the M step of the clusters that k-means finds, from random seeds each time."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        count, (n, features) = self.pair.num_components, self.x.shape
        # In units of standard deviations, so that no feature decides by its unit alone.
        units = torch.where(self.deviation > 0, self.deviation, 1.0)
        means = KMeans(count, n_init=1, random_state=int(torch.randint(2**31, ())))
        with warnings.catch_warnings():
            # Of fewer distinct points than clusters: some are left empty.
            warnings.filterwarnings("ignore", category=ConvergenceWarning)
            labels = means.fit((self.x / units).cpu().numpy()).labels_
        clusters = one_hot(torch.as_tensor(labels, device=self.x.device).long(), count)
        values = {
            "weights": self.x.new_full((count,), 1 / count),
            "locs": self.x[torch.randint(n, (count,), device=self.x.device)],
            "scales": units.expand(count, features),
        }
        if self.full:
            identity = torch.eye(features, dtype=self.x.dtype, device=self.x.device)
            values["correlation_cholesky"] = identity.expand(count, features, features)
        return self.maximise(clusters.to(self.x.dtype), values)

    def expect(self, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the responsibilities, `(n, K)`, and the objective, `()`."""
        log_prob = component_log_prob(self.x, values)
        objective = log_prob.logsumexp(-1).sum()
        if self.priors:
            objective = objective + self.pair.log_prior(values)
        return log_prob.softmax(-1), objective

    def maximise(self, expectations: torch.Tensor, values: Values) -> Values:
        """Return the sites' values after an M step.

        Args:
            expectations: Responsibilities, `(n, K)`.
            values: The values that they belong to.
        """
        counts = expectations.sum(0)
        return (self._map if self.priors else self._likeliest)(expectations, counts, values)

    def flaws(self, values: Values) -> tuple[str, ...]:
        """Return which components have shrunk to the least variance that is allowed."""
        if self.priors:
            return ()
        variances = torch.linalg.eigvalsh(self._in_units(_covariances(values)))[:, 0]
        found = (variances < 1.001 * _LEAST_VARIANCE).nonzero().flatten().tolist()
        return tuple(
            f"Component {k}, of weight {float(values['weights'][k]):.3g}, has collapsed: in some "
            f"direction its scale is {math.sqrt(_LEAST_VARIANCE):g} of the data's, the least that "
            'is allowed. Take fewer components, more restarts, or EM(estimate="map").'
            for k in found
        )

    def _weights(self, counts: torch.Tensor) -> torch.Tensor:
        """Return weights of given counts, none of which is zero, so that it has a logarithm."""
        return (counts / counts.sum()).clamp(min=torch.finfo(counts.dtype).tiny)

    def _likeliest(
        self, responsibilities: torch.Tensor, counts: torch.Tensor, values: Values
    ) -> Values:
        empty = counts < _NO_POINTS
        safe = torch.where(empty, 1.0, counts)
        locs = responsibilities.mT @ self.x / safe.unsqueeze(-1)
        deviation = self.x - locs.unsqueeze(-2)  # (K, n, D)
        weighted = responsibilities.mT.unsqueeze(-1) * deviation
        updated = {"weights": self._weights(counts), "locs": locs}
        if self.full:
            covariances = weighted.mT @ deviation / safe[:, None, None]
            covariances[empty] = torch.diag(self.deviation.square())
            scales, tril = self._factors(self._widened(covariances))
            updated |= {"scales": scales, "correlation_cholesky": tril}
        else:
            variances = (weighted * deviation).sum(-2) / safe.unsqueeze(-1)
            least = _LEAST_VARIANCE * self.deviation.square()
            updated["scales"] = torch.maximum(variances, least).sqrt()
        for name in updated.keys() - {"weights"}:
            updated[name][empty] = values[name][empty]
        return updated

    def _map(self, responsibilities: torch.Tensor, counts: torch.Tensor, values: Values) -> Values:
        from scipy.special import wrightomega

        pair, each = self.pair, counts.unsqueeze(-1)
        precision = values["scales"].square().reciprocal()
        locs = responsibilities.mT @ self.x * precision / (each * precision + pair.locs_scale**-2)
        deviation = self.x - locs.unsqueeze(-2)
        squares = (responsibilities.mT.unsqueeze(-2) @ deviation.square()).squeeze(-2)
        # With t = S / s^2 the equation is w + log w = log z for w = 2 spread^2 t.
        spread, median = pair.scales_spread**2, math.log(pair.scales_median)
        log_z = (2 * spread * squares).log() - 2 * median + 2 * spread * (1 + each)
        omega = torch.as_tensor(wrightomega(log_z.cpu().numpy()), device=log_z.device)
        ratio = omega / (2 * spread)
        # Each form is exact to rounding where the other cancels.
        few = median + spread * (ratio - 1 - each)
        log_scales = torch.where(ratio < 1, few, 0.5 * (squares.log() - ratio.log()))
        weights = self._weights(counts + pair.weights_concentration - 1)
        return {"weights": weights, "locs": locs, "scales": log_scales.exp()}

    def _in_units(self, covariances: torch.Tensor) -> torch.Tensor:
        return covariances / (self.deviation * self.deviation.unsqueeze(-1))

    def _widened(self, covariances: torch.Tensor) -> torch.Tensor:
        """Return covariances with small eigenvalues, in units of the data's, raised."""
        variances, axes = torch.linalg.eigh(self._in_units(covariances))
        raised = axes * variances.clamp(min=_LEAST_VARIANCE).unsqueeze(-2) @ axes.mT
        narrow = variances[:, :1, None] < _LEAST_VARIANCE
        return torch.where(
            narrow, raised * self.deviation * self.deviation.unsqueeze(-1), covariances
        )

    def _factors(self, covariances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scales and Cholesky factors of the correlations."""
        scales = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        tril = torch.linalg.cholesky(covariances)
        return scales, tril / scales.unsqueeze(-1)


def _covariances(values: Values) -> torch.Tensor:
    tril = values["scales"].diag_embed()
    if "correlation_cholesky" in values:
        tril = tril @ values["correlation_cholesky"]
    return tril @ tril.mT
