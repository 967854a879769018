"""The rank of true values among a posterior's draws, for each scalar and test quantity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from ppl_gen.core import Posterior
from ppl_gen.core.arguments import move
from ppl_gen.core.draws import map_draws
from ppl_gen.core.log_density import enumeration_dim, log_joint
from ppl_gen.core.pair import model_of
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.replay import Replay
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import trace_sites
from ppl_gen.diagnostics import ess_bulk

__all__ = ["Quantity", "Ranker", "Values", "independent_draws"]

# By latent site, of one set of values (*site) or of several (n, *site).
Values: TypeAlias = Mapping[str, torch.Tensor]
# From the latent sites' values, (n, *site), and the data to one number each, (n,).
Quantity: TypeAlias = Callable[[Values, Mapping[str, Any]], torch.Tensor]


class Ranker:
    """Ranks true values among posterior draws.

    Autocorrelated draws have uneven ranks even where the sampler is right. They are thinned to as
    many as are worth independent ones, up to `max_rank`; ranks among fewer are spread over the
    whole range at random, as are ties.

    Args:
        pair: The pair, in double precision on the CPU.
        max_rank: Number of draws that a true value is ranked among.
        quantities: Further quantities by name.
        constant: By latent site, which of its elements never vary, as above the diagonal of a
            Cholesky factor: they have no rank.
    """

    def __init__(
        self,
        pair: nn.Module,
        max_rank: int,
        quantities: Mapping[str, Quantity],
        constant: Mapping[str, torch.Tensor],
    ) -> None:
        self.pair = pair
        self.max_rank = max_rank
        self.quantities = quantities
        self.constant = constant

    def __call__(
        self, posterior: Posterior, truth: Values, seed: int
    ) -> tuple[dict[str, int], int]:
        """Return the rank of each quantity, and the number of draws that it was found among.

        Args:
            posterior: The draws.
            truth: The true values, (*site).
            seed: Seed of what is drawn at random.

        Raises:
            ValueError: If draws are NaN.
        """
        # Discrete latents that were summed out have no draws.
        sites = [name for name in truth if name in posterior.latents]
        total = posterior.num_chains * posterior.num_draws
        count = min(self.max_rank, independent_draws(posterior, sites))
        places = ((torch.arange(count) + 0.5) * (total / count)).long()
        values = {}
        for name in sites:
            draws = posterior[name].flatten(0, 1)[places]
            both = torch.cat([truth[name].unsqueeze(0).to(draws.dtype), draws])
            values[name] = both.double() if both.is_floating_point() else both
        columns = self.columns(values, posterior.data or {})
        numbers = np.stack([column.double().numpy() for column in columns.values()], axis=1)
        unclear = np.isnan(numbers).any(axis=0)
        if unclear.any():
            msg = f"'{list(columns)[unclear.argmax()]}' is NaN among the draws."
            raise ValueError(msg)
        generator = np.random.default_rng(seed)
        ties = (numbers[1:] == numbers[0]).sum(axis=0)
        rank = (numbers[1:] < numbers[0]).sum(axis=0)
        rank += generator.integers(0, ties, endpoint=True)
        if count < self.max_rank:
            unit = (rank + generator.random(len(rank))) / (count + 1)
            rank = np.floor(unit * (self.max_rank + 1)).astype(np.int64)
        return dict(zip(columns, rank.tolist(), strict=True)), count

    def columns(self, values: Values, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the quantities by name, (n,).

        Args:
            values: Values of latent sites, (n, *site).
            data: The data.

        Raises:
            ValueError: If a quantity is not one number for each draw, or has the name of another.
        """
        data = move(data, torch.float64, torch.device("cpu"))
        columns = {
            f"{name}[{', '.join(map(str, index))}]" if index else name: value[:, *index]
            for name, value in values.items()
            for index in np.ndindex(value.shape[1:])
            if not self.constant[name][index]
        }
        columns["log_joint"] = self._log_joint(values, data)
        shape = columns["log_joint"].shape
        for label, quantity in self.quantities.items():
            found = quantity(values, data).detach()
            if found.shape != shape or label in columns:
                msg = (
                    f"quantity '{label}': expected one number for each draw, shape "
                    f"{tuple(shape)}, and a name of its own, got shape {tuple(found.shape)}."
                )
                raise ValueError(msg)
            columns[label] = found
        return columns

    def _log_joint(self, values: Values, data: Mapping[str, Any]) -> torch.Tensor:
        """Return the log joint density, discrete latents summed out, (n,)."""
        with isolated(0, torch.float64), torch.no_grad(), unchecked(), AnswerParams(self.pair):
            below = enumeration_dim(trace_sites(self.pair, data))

            def one(point: Values) -> Values:
                return {"": log_joint(model_of(self.pair), data, Replay(point), below)}

            return map_draws(one, values)[""]


def independent_draws(posterior: Posterior, sites: Sequence[str]) -> int:
    """Return how many independent draws a posterior's are worth, those of the worst scalar.

    Args:
        posterior: The posterior.
        sites: Names of the sites that are looked at.
    """
    shape = posterior.num_chains, posterior.num_draws
    total = shape[0] * shape[1]
    if not posterior.is_mcmc:
        return total
    columns = [posterior[name].reshape(*shape, -1) for name in sites]
    if "lp" in posterior.sample_stats:
        columns.append(posterior.sample_stats["lp"].unsqueeze(-1))
    worth = ess_bulk(torch.cat([column.double() for column in columns], dim=-1).numpy())
    # Constants have none, and antithetic draws more than there are.
    return int(np.clip(np.nanmin(worth, initial=total), 1, total))
