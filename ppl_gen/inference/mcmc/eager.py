"""The sampler in PyTorch: that of `sampler.cpp`, name by name, on all chains at once.

It serves where there is no C++ compiler, where a model cannot be compiled, and on GPUs. A method
that the C++ has for one chain takes here the indices `c` of the chains that are at that point, a
tensor (n,); where their ways part, each part of them goes on by itself.

NUTS: Hoffman and Gelman (2014), arXiv:1111.4246; multinomial sampling and the generalised
criterion: Betancourt (2017), arXiv:1701.02434; without recursion, by checkpoints: Phan, Pradhan
and Jankowiak (2019), arXiv:1912.11554; the checks across the two halves of a tree: Stan 2.21.
Momenta are whitened: with A A' the inverse mass matrix, r ~ N(0, I), dq/dt = A r and
dr/dt = A' grad log p(q), so that kinetic energy and criterion are those of the unit metric.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

from ppl_gen.inference.mcmc.state import Kernel, MetricKind, Phase, State, Statistic

if TYPE_CHECKING:
    from ppl_gen.core.log_density import LogDensity

__all__ = ["EagerEngine", "Purpose", "uniform"]

_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class Purpose(IntEnum):
    """What a random number is for."""

    MOMENTUM = 0
    DIRECTION = 1
    WITHIN_BRANCH = 2
    BETWEEN_BRANCHES = 3
    PATH_LENGTH = 4
    ACCEPT = 5
    SEARCH = 6
    SHRINK = 7


# ---- random numbers: a function of chain, transition, purpose and count, with no state to keep


def uniform(
    key: torch.Tensor, transition: torch.Tensor, purpose: int, count: torch.Tensor
) -> torch.Tensor:
    """Return numbers uniform on (0, 1), the same to the last bit as those of the C++.

    Args:
        key: Of the chain, int64; the arguments broadcast.
        transition: Number of transitions that the chain has made, int64.
        purpose: A `Purpose`.
        count: Of the numbers for this purpose, int64.

    Returns:
        Numbers in double precision.

    References:
        Fast splittable pseudorandom number generators. Steele, Lea and Flood, 2014.
    """
    step = _signed(0x9E3779B97F4A7C15)
    x = _mix(key + step * (transition + 1))
    x = _mix(x + step * (((purpose + 1) << 48) + count))
    return (_shift_right(x, 12).double() + 0.5) * 2.0**-52  # never 0 nor 1


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Return the finaliser of SplitMix64; products of int64 wrap around as unsigned ones do."""
    x = x ^ _shift_right(x, 30)
    x = x * _signed(0xBF58476D1CE4E5B9)
    x = x ^ _shift_right(x, 27)
    x = x * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word."""
    return word - (1 << 64)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift zeros in from the left, where int64's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


# ---- vectors, one in each row


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=-1)


def _kinetic(r: torch.Tensor) -> torch.Tensor:
    return 0.5 * _dot(r, r)


def _turns(rho: torch.Tensor, *ends: torch.Tensor) -> torch.Tensor:
    """Return whether a sum of momenta points away from the momentum at either end."""
    return torch.stack([_dot(rho, r) <= 0 for r in ends]).any(dim=0)


class EagerEngine:
    """Advances chains by PyTorch, all of them in one group.

    Args:
        density: The log density, on the state's device.
        state: The chains, changed in place.
    """

    def __init__(self, density: LogDensity, state: State) -> None:
        self.group_size = state.chains
        self._density = density
        self._state = state

    @torch.no_grad()
    def advance(self, group: int, steps: int) -> int:
        """Advance the chains until one of them waits, or for a number of steps.

        Args:
            group: Number of the group, 0.
            steps: At most so many leapfrog steps.

        Returns:
            The number of steps made.
        """
        s = self._state
        for step in range(steps):
            moving = _where(s.phase <= Phase.MOVING)
            if len(moving) == 0:
                return step
            self._before_density(moving)
            self._evaluate()
            self._after_density(moving)
            if bool((s.phase[moving] == Phase.WAITING).any()):
                return step + 1
        return steps

    @torch.no_grad()
    def begin_search(self, chain: int) -> None:
        """Let a chain look for a step size and go on."""
        self._state.check_room(chain)
        self._begin_search(torch.tensor([chain], device=self._state.key.device))

    @torch.no_grad()
    def begin_transition(self, chain: int) -> None:
        """Let a chain go on."""
        self._state.check_room(chain)
        self._state.phase[chain] = Phase.MOVING
        self._begin_transition(torch.tensor([chain], device=self._state.key.device))

    def _evaluate(self) -> None:
        """Compute log density and gradient of all chains.

        Of those at rest too: on a batch of another size the others could be rounded differently,
        and the draws would depend on which chains happened to wait for each other.
        """
        s = self._state
        try:
            s.log_prob[:], s.gradient[:] = self._log_prob_and_gradient(s.position)
        except _LinAlgError:
            # Some chain is where a matrix cannot be factored: only that one diverges.
            for chain, q in enumerate(s.position):
                try:
                    s.log_prob[chain], s.gradient[chain] = self._log_prob_and_gradient(q)
                except _LinAlgError:
                    s.log_prob[chain], s.gradient[chain] = math.nan, math.nan

    def _log_prob_and_gradient(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = q.detach().to(self._density.dtype, copy=True).requires_grad_()
            log_prob = self._density.log_prob(leaf)
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        return log_prob.detach().double(), gradient.double()

    def _random(self, c: torch.Tensor, purpose: int, count: torch.Tensor) -> torch.Tensor:
        return uniform(self._state.key[c], self._state.transition[c], purpose, count)

    def _draw_normal(self, c: torch.Tensor, purpose: int, first: torch.Tensor) -> torch.Tensor:
        """Draw r ~ N(0, I) by Box and Muller."""
        s = self._state
        count = first.unsqueeze(-1) + torch.arange(s.dim + s.dim % 2, device=c.device)
        u = uniform(s.key[c].unsqueeze(-1), s.transition[c].unsqueeze(-1), purpose, count)
        radius = torch.sqrt(-2 * torch.log(u[:, 0::2]))
        angle = 2 * math.pi * u[:, 1::2]
        pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
        return pairs.flatten(1)[:, : s.dim]

    def _apply_metric(self, c: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """Return A r."""
        s = self._state
        if s.metric == MetricKind.DENSE:
            return (self._factor(c) @ r.unsqueeze(-1)).squeeze(-1)
        return s.scale[c] * (r + self._stretch(c, r))

    def _apply_transposed(self, c: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return A' g."""
        s = self._state
        if s.metric == MetricKind.DENSE:
            return (g.unsqueeze(-2) @ self._factor(c)).squeeze(-2)
        scaled = s.scale[c] * g
        return scaled + self._stretch(c, scaled)

    def _factor(self, c: torch.Tensor) -> torch.Tensor:
        # The most frequent case, that of all chains, needs no copy.
        return self._state.factor if len(c) == self.group_size else self._state.factor[c]

    def _stretch(self, c: torch.Tensor, x: torch.Tensor) -> torch.Tensor | float:
        """Return U diag(stretch - 1) U' x."""
        s = self._state
        if s.metric != MetricKind.LOW_RANK:
            return 0.0
        directions = s.directions[c]
        used = torch.arange(s.max_rank, device=c.device) < s.rank[c].unsqueeze(-1)
        amount = (directions @ x.unsqueeze(-1)).squeeze(-1) * (s.stretch[c] - 1)
        amount = torch.where(used, amount, 0.0)
        return (amount.unsqueeze(-2) @ directions).squeeze(-2)

    # ---- a step, around the call of the log density

    def _before_density(self, c: torch.Tensor) -> None:
        s = self._state
        step = (s.step_size[c] * s.shrink[c] * s.direction[c]).unsqueeze(-1)
        if s.kernel != Kernel.RANDOM_WALK:
            s.momentum[c] += 0.5 * step * s.force[c]
        velocity = self._apply_metric(c, s.momentum[c])
        s.previous[c] = s.position[c]
        s.position[c] += step * velocity

    def _after_density(self, c: torch.Tensor) -> None:
        s = self._state
        s.evaluations[c] += 1
        if s.kernel == Kernel.RANDOM_WALK:
            self._end_random_walk(c)
            return
        step = (s.step_size[c] * s.shrink[c] * s.direction[c]).unsqueeze(-1)
        s.force[c] = self._apply_transposed(c, s.gradient[c])
        s.momentum[c] += 0.5 * step * s.force[c]
        energy = _kinetic(s.momentum[c]) - s.log_prob[c]
        energy = torch.where(torch.isfinite(energy), energy, torch.inf)
        searching = s.phase[c] == Phase.SEARCHING
        self._end_search_step(c[searching], energy[searching])
        c, energy = c[~searching], energy[~searching]
        if s.kernel == Kernel.HMC:
            self._end_hmc_step(c, energy)
        else:
            self._end_leaf(c, energy)

    # ---- the first step size: doubled or halved until one step's acceptance crosses 0.8

    def _begin_search(self, c: torch.Tensor) -> None:
        s = self._state
        s.phase[c] = Phase.SEARCHING
        s.search_direction[c] = 0
        s.search_steps[c] = 0
        if s.kernel == Kernel.RANDOM_WALK:
            self._end_search(c)
        else:
            self._begin_search_step(c)

    def _begin_search_step(self, c: torch.Tensor) -> None:
        s = self._state
        s.position[c] = s.tree_position[c]
        s.shrink[c] = 1
        s.momentum[c] = self._draw_normal(c, Purpose.SEARCH, (s.dim + 1) * s.search_steps[c])
        s.force[c] = self._apply_transposed(c, s.tree_gradient[c])
        s.direction[c] = 1
        s.energy[c] = _kinetic(s.momentum[c]) - s.tree_log_prob[c]

    def _end_search_step(self, c: torch.Tensor, energy: torch.Tensor) -> None:
        if len(c) == 0:
            return
        s = self._state
        accepted = s.energy[c] - energy > math.log(0.8)
        towards = torch.where(accepted, 1, -1)
        first = s.search_direction[c] == 0
        s.search_direction[c] = torch.where(first, towards, s.search_direction[c])
        s.search_steps[c] += 1
        following = s.step_size[c] * torch.where(s.search_direction[c] > 0, 2.0, 0.5)
        crossed = towards != s.search_direction[c]
        ends = crossed | (s.search_steps[c] >= 50) | (following > 1e7) | (following < 1e-12)
        self._end_search(c[ends])
        c = c[~ends]
        s.step_size[c] = following[~ends]
        self._begin_search_step(c)

    def _end_search(self, c: torch.Tensor) -> None:
        if len(c) == 0:
            return
        s = self._state
        factor = 1 if s.kernel == Kernel.RANDOM_WALK else 10
        s.average_origin[c] = torch.log(factor * s.step_size[c])
        s.average_error[c] = 0
        s.log_step_average[c] = 0
        s.average_count[c] = 0
        s.phase[c] = Phase.MOVING
        self._begin_transition(c)

    def _adapt_step_size(self, c: torch.Tensor, acceptance: torch.Tensor) -> None:
        """Dual averaging, Hoffman and Gelman (2014), section 3.2."""
        s = self._state
        gamma, t0, kappa = 0.05, 10, 0.75
        s.average_count[c] += 1
        count = s.average_count[c].double()
        share = 1 / (count + t0)
        s.average_error[c] += share * (s.target_accept - acceptance - s.average_error[c])
        log_step = s.average_origin[c] - torch.sqrt(count) / gamma * s.average_error[c]
        weight = count**-kappa
        s.log_step_average[c] = weight * log_step + (1 - weight) * s.log_step_average[c]
        s.step_size[c] = torch.exp(log_step)

    # ---- transitions

    def _begin_transition(self, c: torch.Tensor) -> None:
        if len(c) == 0:
            return
        s = self._state
        s.momentum[c] = self._draw_normal(c, Purpose.MOMENTUM, torch.zeros_like(c))
        s.position[c] = s.tree_position[c]
        if s.kernel != Kernel.RANDOM_WALK:
            s.force[c] = self._apply_transposed(c, s.tree_gradient[c])
        moving = s.kernel != Kernel.RANDOM_WALK
        s.energy[c] = moving * _kinetic(s.momentum[c]) - s.tree_log_prob[c]
        s.direction[c] = 1
        s.steps[c] = 0
        s.depth[c] = 0
        s.diverging[c] = 0
        s.sum_acceptance[c] = 0
        s.shrink[c] = 1
        if s.kernel != Kernel.RANDOM_WALK:
            self._shrink_step(c)
        if s.kernel == Kernel.HMC:
            self._begin_path(c)
        if s.kernel == Kernel.NUTS:
            self._begin_tree(c)

    def _shrink_step(self, c: torch.Tensor) -> None:
        """Make one transition in 20 by smaller steps, which free a chain from a narrow place."""
        share = 0.05
        u = self._random(c, Purpose.SHRINK, torch.zeros_like(c)) / share
        power = (4 * u).floor() + 1
        self._state.shrink[c] = torch.where(u < 1, 0.5**power, 1.0)

    def _depth_limit(self, c: torch.Tensor) -> torch.Tensor:
        """Return the deepest tree of this transition."""
        s = self._state
        usual = (1 + s.depth_sum[c] // s.depth_count[c].clamp(min=1)).clamp(max=s.max_tree_depth)
        whole = (s.shrink[c] == 1) | (s.depth_count[c] == 0)
        return torch.where(whole, s.max_tree_depth, usual)

    def _end_transition(self, c: torch.Tensor, acceptance: torch.Tensor) -> None:
        if len(c) == 0:
            return
        s = self._state
        warming_up = s.transition[c] < s.warmup
        usual = warming_up & (s.shrink[c] == 1)
        self._adapt_step_size(c[usual], acceptance[usual])
        s.depth_sum[c[usual]] += s.depth[c[usual]]
        s.depth_count[c[usual]] += 1
        self._remember_for_metric(c[warming_up])
        self._keep_draw(c[~warming_up], acceptance[~warming_up])
        s.transition[c] += 1
        waits = (s.transition[c] == s.next_stop[c]) | (s.kept[c] == s.chunk)
        s.phase[c[waits]] = Phase.WAITING
        self._begin_transition(c[~waits])

    def _remember_for_metric(self, c: torch.Tensor) -> None:
        s = self._state
        if s.memory == 0:
            return
        place = s.remembered[c] % s.memory
        s.window_positions[c, place] = s.tree_position[c]
        s.window_gradients[c, place] = s.tree_gradient[c]
        s.window_log_probs[c, place] = s.tree_log_prob[c]
        s.remembered[c] += 1

    def _keep_draw(self, c: torch.Tensor, acceptance: torch.Tensor) -> None:
        s = self._state
        noted = c[(s.diverging[c] == 1) & (s.divergences[c] < s.divergence_capacity)]
        s.divergence_positions[noted, s.divergences[noted]] = s.previous[noted]
        s.divergences[c] += s.diverging[c]
        kept = (s.transition[c] - s.warmup + 1) % s.thinning == 0
        c, acceptance = c[kept], acceptance[kept]
        index = s.kept[c]
        s.draws[c, index] = s.tree_position[c]
        s.statistics[c, index, Statistic.LP] = s.tree_log_prob[c]
        s.statistics[c, index, Statistic.ENERGY] = s.energy[c]
        s.statistics[c, index, Statistic.ACCEPTANCE_RATE] = acceptance
        s.statistics[c, index, Statistic.TREE_DEPTH] = s.depth[c].double()
        s.statistics[c, index, Statistic.N_STEPS] = s.steps[c].double()
        s.statistics[c, index, Statistic.STEP_SIZE] = s.step_size[c] * s.shrink[c]
        s.statistics[c, index, Statistic.DIVERGING] = s.diverging[c].double()
        s.kept[c] += 1

    # ---- NUTS: a tree of leaves, doubled branch by branch

    def _begin_tree(self, c: torch.Tensor) -> None:
        s = self._state
        s.left_position[c] = s.right_position[c] = s.position[c]
        s.left_momentum[c] = s.right_momentum[c] = s.momentum[c]
        s.left_force[c] = s.right_force[c] = s.force[c]
        s.tree_sum[c] = s.momentum[c]
        s.tree_log_weight[c] = 0
        self._begin_branch(c)

    def _begin_branch(self, c: torch.Tensor) -> None:
        if len(c) == 0:
            return
        s = self._state
        right = self._random(c, Purpose.DIRECTION, s.depth[c]) < 0.5
        s.direction[c] = torch.where(right, 1, -1)
        right = right.unsqueeze(-1)
        s.position[c] = torch.where(right, s.right_position[c], s.left_position[c])
        s.momentum[c] = torch.where(right, s.right_momentum[c], s.left_momentum[c])
        s.force[c] = torch.where(right, s.right_force[c], s.left_force[c])
        s.branch_sum[c] = 0
        s.branch_log_weight[c] = -torch.inf
        s.leaf[c] = 0

    def _end_leaf(self, c: torch.Tensor, energy: torch.Tensor) -> None:
        s = self._state
        log_weight = s.energy[c] - energy  # -inf where the energy is infinite
        s.steps[c] += 1
        s.sum_acceptance[c] += torch.exp(log_weight.clamp(max=0))
        goes_on = log_weight > -s.max_energy_error
        diverging = c[~goes_on]
        s.diverging[diverging] = 1
        c, log_weight = c[goes_on], log_weight[goes_on]
        odd = s.leaf[c] % 2 == 1
        self._keep_checkpoint(c[~odd])
        s.branch_sum[c] += s.momentum[c]
        s.branch_log_weight[c] = torch.logaddexp(s.branch_log_weight[c], log_weight)
        share = torch.exp(log_weight - s.branch_log_weight[c])
        chosen = c[self._random(c, Purpose.WITHIN_BRANCH, s.steps[c]) < share]
        s.branch_position[chosen] = s.position[chosen]
        s.branch_gradient[chosen] = s.gradient[chosen]
        s.branch_log_prob[chosen] = s.log_prob[chosen]
        turning = c[odd][self._turns_within_branch(c[odd])]
        self._end_tree(torch.cat([diverging, turning]))
        c = c[~torch.isin(c, turning)]
        s.last_momentum[c] = s.momentum[c]
        s.leaf[c] += 1
        self._end_branch(c[s.leaf[c] >> s.depth[c] == 1])

    def _keep_checkpoint(self, c: torch.Tensor) -> None:
        """Keep, before an even leaf, the sum of the momenta so far, its own, and the last one."""
        s = self._state
        level = self._bits(s.leaf[c] >> 1).sum(dim=-1)
        s.checkpoint_sum[c, level] = s.branch_sum[c]
        s.checkpoint_momentum[c, level] = s.momentum[c]
        s.checkpoint_previous[c, level] = s.last_momentum[c]

    def _turns_within_branch(self, c: torch.Tensor) -> torch.Tensor:
        """Return whether one of the subtrees that end at an odd leaf turns back."""
        s = self._state
        turns = torch.zeros_like(c, dtype=torch.bool)
        if len(c) == 0:
            return turns
        highest = self._bits(s.leaf[c] >> 1).sum(dim=-1)
        subtrees = self._bits(s.leaf[c]).cumprod(dim=-1).sum(dim=-1)
        for back in range(int(subtrees.max())):
            some = _where(subtrees > back)
            turns[some] |= self._subtree_turns(c[some], highest[some] - back, halves=back > 0)
        return turns

    def _subtree_turns(self, c: torch.Tensor, level: torch.Tensor, halves: bool) -> torch.Tensor:
        s = self._state
        last, total = s.momentum[c], s.branch_sum[c]
        first, before = s.checkpoint_momentum[c, level], s.checkpoint_sum[c, level]
        turns = _turns(total - before, first, last)
        if halves:
            start, until = s.checkpoint_momentum[c, level + 1], s.checkpoint_sum[c, level + 1]
            end = s.checkpoint_previous[c, level + 1]
            turns |= _turns(until - before + start, first, start)
            turns |= _turns(total - until + end, end, last)
        return turns

    def _bits(self, n: torch.Tensor) -> torch.Tensor:
        """Return the bits of the number of a leaf, lowest first, (..., max_tree_depth)."""
        return n.unsqueeze(-1) >> torch.arange(self._state.max_tree_depth, device=n.device) & 1

    def _end_branch(self, c: torch.Tensor) -> None:
        if len(c) == 0:
            return
        s = self._state
        # A new branch is preferred to the old tree where it weighs more.
        log_ratio = s.branch_log_weight[c] - s.tree_log_weight[c]
        u = self._random(c, Purpose.BETWEEN_BRANCHES, s.depth[c])
        chosen = c[u < torch.exp(log_ratio)]
        s.tree_position[chosen] = s.branch_position[chosen]
        s.tree_gradient[chosen] = s.branch_gradient[chosen]
        s.tree_log_prob[chosen] = s.branch_log_prob[chosen]
        s.tree_log_weight[c] = torch.logaddexp(s.tree_log_weight[c], s.branch_log_weight[c])
        right = s.direction[c] > 0
        wide = right.unsqueeze(-1)
        # Momenta on both sides of the seam, and at both ends of the new tree.
        outer = torch.where(wide, s.right_momentum[c], s.left_momentum[c])
        far = torch.where(wide, s.left_momentum[c], s.right_momentum[c])
        first, last = s.checkpoint_momentum[c, 0], s.momentum[c]
        tree, branch = s.tree_sum[c], s.branch_sum[c]
        turns = _turns(tree + branch, far, last)
        turns |= _turns(tree + first, far, first)
        turns |= _turns(branch + outer, outer, last)
        s.tree_sum[c] = tree + branch
        rightmost, leftmost = c[right], c[~right]
        s.right_position[rightmost] = s.position[rightmost]
        s.right_force[rightmost] = s.force[rightmost]
        s.right_momentum[rightmost] = s.momentum[rightmost]
        s.left_position[leftmost] = s.position[leftmost]
        s.left_force[leftmost] = s.force[leftmost]
        s.left_momentum[leftmost] = s.momentum[leftmost]
        s.depth[c] += 1
        ends = turns | (s.depth[c] == self._depth_limit(c))
        ended = c[ends]
        self._end_transition(ended, s.sum_acceptance[ended] / s.steps[ended])
        self._begin_branch(c[~ends])

    def _end_tree(self, c: torch.Tensor) -> None:
        """End at a branch that turns or diverges: it adds nothing to the tree or its depth."""
        s = self._state
        self._end_transition(c, s.sum_acceptance[c] / s.steps[c])

    # ---- HMC: a path of random length, then Metropolis

    def _begin_path(self, c: torch.Tensor) -> None:
        s = self._state
        length = s.path_length * (0.5 + self._random(c, Purpose.PATH_LENGTH, torch.zeros_like(c)))
        s.leaf[c] = torch.ceil(length / s.step_size[c]).clamp(1, s.max_steps).long()

    def _end_hmc_step(self, c: torch.Tensor, energy: torch.Tensor) -> None:
        s = self._state
        log_ratio = s.energy[c] - energy
        s.steps[c] += 1
        diverging = ~(log_ratio > -s.max_energy_error)
        s.diverging[c[diverging]] = 1
        ends = diverging | (s.steps[c] >= s.leaf[c])
        self._accept(c[ends], log_ratio[ends])

    # ---- random walk: A r is the proposal

    def _end_random_walk(self, c: torch.Tensor) -> None:
        s = self._state
        s.steps[c] = 1
        log_ratio = s.log_prob[c] - s.tree_log_prob[c]
        self._accept(c, torch.where(torch.isfinite(s.log_prob[c]), log_ratio, -torch.inf))

    def _accept(self, c: torch.Tensor, log_ratio: torch.Tensor) -> None:
        s = self._state
        acceptance = torch.exp(log_ratio.clamp(max=0))
        u = self._random(c, Purpose.ACCEPT, torch.zeros_like(c))
        accepted = c[(s.diverging[c] == 0) & (u < acceptance)]
        s.tree_position[accepted] = s.position[accepted]
        s.tree_gradient[accepted] = s.gradient[accepted]
        s.tree_log_prob[accepted] = s.log_prob[accepted]
        self._end_transition(c, acceptance)


def _where(mask: torch.Tensor) -> torch.Tensor:
    """Return the indices at which a mask (n,) holds."""
    return mask.nonzero().squeeze(-1)
