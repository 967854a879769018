"""The exact E step: the probability of each value of each discrete latent, given all else."""

from __future__ import annotations

import dataclasses

import torch

from ppl_gen.core import LogDensity
from ppl_gen.core.discrete import run_enumerated
from ppl_gen.core.log_density import enumeration_dim
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import default_dtype, unchecked
from ppl_gen.inference.em.steps import Values

__all__ = ["responsibilities"]


def responsibilities(density: LogDensity, values: Values) -> dict[str, torch.Tensor]:
    r"""Return the marginal probabilities of the discrete latent sites.

    With a zero :math:`t_{ik}` added to the log density wherever element `i` of a site has value
    `k`, the marginal probability is the derivative

    .. math:: p(z_i = k \mid x, \theta) = \partial \log \sum_z e^{\log p(x, z, \theta)
        + \sum_i t_{i z_i}} / \partial t_{ik}.

    Args:
        density: A log density, whose pair and data are meant.
        values: Values of the continuous latent sites, (*site).

    Returns:
        Probabilities by site, (*plates, values in the order of the support), outer plates first.
        Scales of plates and sites play no role. Sites of one possible value are left out.

    References:
        Darwiche, A differential approach to inference in Bayesian networks (2003), Journal of the
        ACM 50(3), 280-305.
    """
    first_dim = enumeration_dim(density.model_sites)
    assert first_dim is not None
    with default_dtype(density.dtype), unchecked(), AnswerParams(density.pair):
        with torch.no_grad():
            run = run_enumerated(model_of(density.pair), density.data, first_dim, Replay(values))
        factors = {name: dataclasses.replace(f, scale=1.0) for name, f in run.factors.items()}
        tilts: dict[str, torch.Tensor] = {}
        for name, variable in run.variables().items():
            if len(variable.support) == 1:
                continue
            size = {plate.dim: plate.size for plate in density.model_sites[name].plates}
            plates = sorted(variable.plates, key=run.plate_dims.__getitem__)
            shape = [size[run.plate_dims[plate]] for plate in plates]
            tilt = torch.zeros(*shape, len(variable.support), device=density.device)
            tilt._pyro_dims = "".join(plates) + variable.symbol  # type: ignore[attr-defined]
            tilts[name] = tilt.requires_grad_()
            factors[f"{name}, tilted"] = dataclasses.replace(factors[name], term=tilt)
        total = dataclasses.replace(run, factors=factors).log_joint()
        found = torch.autograd.grad(total, list(tilts.values()))
    return dict(zip(tilts, found, strict=True))
