"""Discrete latents against brute force: summed out exactly, drawn from their exact joint law."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import infer_discrete
from pyro.ops.indexing import Vindex
from scipy.stats import chi2

from ppl_gen import Posterior, fit
from ppl_gen.core import LogDensity, SiteError
from ppl_gen.core.elimination import Elimination
from ppl_gen.core.pair import as_pair
from ppl_gen.core.scope import isolated
from ppl_gen.inference import NUTS, SVI

FLOAT64 = torch.float64
# A right sampler fails a test of its frequencies with this probability, over all seeds.
ALPHA = 1e-4
Normal = torch.distributions.Normal


def normal(x: float, loc: float, scale: float = 1.0) -> float:
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def log_sum(terms: list[float]) -> float:
    return float(torch.tensor(terms, dtype=FLOAT64).logsumexp(0))


def posterior(model: Callable[..., Any], data: dict[str, Any], **draws: torch.Tensor) -> Posterior:
    """A posterior with draws given by hand, (chain, draw, *site)."""
    draws = {name: value.to(FLOAT64) for name, value in draws.items()}
    data = {n: v.to(FLOAT64) if isinstance(v, torch.Tensor) else v for n, v in data.items()}
    return Posterior(draws=draws, latents=tuple(draws), pair=as_pair(model), data=data)


def repeated(value: Any, count: int) -> torch.Tensor:
    value = torch.as_tensor(value, dtype=FLOAT64)
    return value.expand(1, count, *value.shape)


def p_value(seen: Counter[Any], log_weights: dict[Any, float]) -> float:
    """Return the p-value of Pearson's test; outcomes expected fewer than 5 times are pooled."""
    count = sum(seen.values())
    total = log_sum(list(log_weights.values()))
    assert set(seen) <= set(log_weights)
    statistic, cells, rare_seen, rare_expected = 0.0, 0, 0, 0.0
    for outcome, weight in log_weights.items():
        expected = count * math.exp(weight - total)
        if expected < 5:
            rare_seen, rare_expected = rare_seen + seen[outcome], rare_expected + expected
            continue
        statistic, cells = statistic + (seen[outcome] - expected) ** 2 / expected, cells + 1
    if rare_expected >= 5:
        statistic += (rare_seen - rare_expected) ** 2 / rare_expected
        cells += 1
    else:  # a handful at most: 30 of an expected 5 have probability 1e-14
        assert rare_seen < 30
    return float(chi2.sf(statistic, cells - 1))


# --- Mixtures ---


def mixture(y: torch.Tensor) -> None:
    locs = pyro.sample("locs", dist.Normal(y.new_zeros(3), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(y.new_tensor([0.2, 0.3, 0.5])))
        pyro.deterministic("loc", locs[k], event_dim=0)
        pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)


Y = torch.tensor([0.3, -1.0, 2.0, 0.5, 7.0])


def responsibilities(locs: torch.Tensor) -> torch.Tensor:
    logits = Normal(locs.to(FLOAT64), 1.0).log_prob(Y.to(FLOAT64).unsqueeze(-1))
    return (logits + torch.tensor([0.2, 0.3, 0.5], dtype=FLOAT64).log()).softmax(-1)


def frequencies_p_value(k: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the p-value of draws (draw, row) against probabilities (row, component)."""
    statistic, degrees = 0.0, 0
    for row in range(k.shape[1]):
        cells = expected[row] * len(k) >= 5
        seen = torch.bincount(k[:, row], minlength=3).to(FLOAT64)
        want = expected[row] * len(k)
        if bool(cells.sum() > 1):
            statistic += float(((seen - want)[cells] ** 2 / want[cells]).sum())
            degrees += int(cells.sum()) - 1
        if bool((seen[~cells] >= 30).any()):  # of an expected 5: probability 1e-14
            return 0.0
    return float(chi2.sf(statistic, degrees))


def test_assignments_have_their_responsibilities() -> None:
    """Two parameter values in turn: every draw has to go with its own."""
    one, other = torch.tensor([-1.0, 0.5, 2.5]), torch.tensor([3.0, -2.0, 1.0])
    count = 8000
    locs = torch.stack([one, other]).repeat(count // 2, 1).unsqueeze(0)
    result = posterior(mixture, {"y": Y}, locs=locs)
    drawn = result.discrete()
    assert drawn["k"].shape == (1, count, 5)
    assert drawn["k"].dtype == torch.long
    assert frequencies_p_value(drawn["k"][0, 0::2], responsibilities(one)) > ALPHA
    assert frequencies_p_value(drawn["k"][0, 1::2], responsibilities(other)) > ALPHA
    # Negative control: with the draws out of step the test must fail.
    assert frequencies_p_value(drawn["k"][0, 1::2], responsibilities(one)) < 1e-9
    # What follows from the assignments comes with them.
    expected = locs.to(FLOAT64).gather(-1, drawn["k"])
    torch.testing.assert_close(drawn["loc"], expected)


def test_rows_are_drawn_independently() -> None:
    result = posterior(mixture, {"y": torch.zeros(2)}, locs=repeated([0.0, 0.0, 0.0], 20000))
    k = result.discrete()["k"][0].tolist()
    weights = [math.log(w) for w in (0.2, 0.3, 0.5)]
    law = {(i, j): weights[i] + weights[j] for i in range(3) for j in range(3)}
    assert p_value(Counter(map(tuple, k)), law) > ALPHA
    tied = Counter((i, i) for i, _ in k)  # negative control: one draw for both rows
    assert p_value(tied, law) < 1e-9


def test_thinning_seeds_and_chains() -> None:
    locs = torch.randn(2, 50, 3)
    result = posterior(mixture, {"y": Y}, locs=locs)
    some = result.discrete(10, seed=3)
    assert some["k"].shape == (2, 10, 5)
    torch.testing.assert_close(result.discrete(10, seed=3)["k"], some["k"], rtol=0, atol=0)
    assert not torch.equal(result.discrete(10, seed=4)["k"], some["k"])
    index = torch.linspace(0, 49, 10).round().long()
    expected = locs[:, index].to(FLOAT64).gather(-1, some["k"])
    torch.testing.assert_close(some["loc"], expected)


def test_a_model_that_branches_runs_draw_by_draw_with_the_same_law() -> None:
    def branching(y: torch.Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(y.new_zeros(3), 3.0).to_event(1))
        if locs[0] > 100:
            pyro.factor("never", -1.0)
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(y.new_tensor([0.2, 0.3, 0.5])))
            pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)

    locs = torch.tensor([-1.0, 0.5, 2.5])
    result = posterior(branching, {"y": Y}, locs=repeated(locs, 1500))
    assert frequencies_p_value(result.discrete()["k"][0], responsibilities(locs)) > ALPHA


# --- Hidden Markov models ---

STAY = 0.8
SERIES = torch.tensor([0.5, 1.4, -0.3, 0.9, 1.2, 0.2])


def hidden_markov(y: torch.Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    transition = y.new_tensor([[STAY, 1 - STAY], [1 - STAY, STAY]])
    state = pyro.sample("state_0", dist.Categorical(y.new_tensor([0.6, 0.4])))
    for t in pyro.markov(range(len(y))):
        if t > 0:
            state = pyro.sample(f"state_{t}", dist.Categorical(Vindex(transition)[state]))
        pyro.sample(f"y_{t}", dist.Normal(loc + state, 1.0), obs=y[t])


def path_log_weight(path: tuple[int, ...], loc: float) -> float:
    total = math.log(0.6 if path[0] == 0 else 0.4)
    for before, after in itertools.pairwise(path):
        total += math.log(STAY if before == after else 1 - STAY)
    return total + sum(normal(float(y), loc + k) for k, y in zip(path, SERIES, strict=True))


def path_law(loc: float) -> dict[tuple[int, ...], float]:
    return {path: path_log_weight(path, loc) for path in itertools.product((0, 1), repeat=6)}


def test_paths_of_a_hidden_markov_model_have_their_joint_law() -> None:
    """All 64 paths by brute force; independent draws from the right marginals are rejected."""
    result = posterior(hidden_markov, {"y": SERIES}, loc=repeated(0.2, 20000))
    drawn = result.discrete()
    paths = torch.stack([drawn[f"state_{t}"][0] for t in range(6)], -1)
    law = path_law(0.2)
    assert p_value(Counter(map(tuple, paths.tolist())), law) > ALPHA
    mixed = torch.stack([paths[torch.randperm(len(paths)), t] for t in range(6)], -1)
    assert p_value(Counter(map(tuple, mixed.tolist())), law) < 1e-9


def test_pyros_own_sampler_agrees_with_the_brute_force() -> None:
    """The reference is itself held to the same test, a few draws of it."""
    law = path_law(0.2)
    conditioned = pyro.condition(hidden_markov, {"loc": torch.tensor(0.2)})
    model = infer_discrete(pyro.infer.config_enumerate(conditioned), first_available_dim=-1)
    with isolated(0):
        traces = [pyro.poutine.trace(model).get_trace(SERIES) for _ in range(300)]
    paths = Counter(tuple(int(t.nodes[f"state_{i}"]["value"]) for i in range(6)) for t in traces)
    assert p_value(paths, law) > ALPHA


def test_density_of_a_hidden_markov_model() -> None:
    density = LogDensity(hidden_markov, {"y": SERIES})
    locs = torch.tensor([[-0.7], [0.2], [3.0]], dtype=FLOAT64)
    expected = [normal(float(x), 0.0) + log_sum(list(path_law(float(x)).values())) for x in locs]
    # PyTorch's own logs of 0.8 and 0.2 are of float32 data.
    torch.testing.assert_close(
        density.log_prob(locs), torch.tensor(expected, dtype=FLOAT64), rtol=1e-6, atol=1e-6
    )
    assert density._batchable


def test_density_of_a_discrete_hmm_equals_that_of_the_loop() -> None:
    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        transition = y.new_tensor([[STAY, 1 - STAY], [1 - STAY, STAY]])
        # Its first hidden state is before the first observation: (0.6, 0.4) is where it goes to.
        start = torch.linalg.solve(transition.T, y.new_tensor([0.6, 0.4]))
        states = loc + y.new_tensor([0.0, 1.0])
        hmm = dist.DiscreteHMM(
            start.log(), transition.log(), dist.Normal(states, 1.0), duration=len(y)
        )
        pyro.sample("y", hmm, obs=y)

    locs = torch.tensor([[-0.7], [0.2]], dtype=FLOAT64)
    one, other = LogDensity(model, {"y": SERIES}), LogDensity(hidden_markov, {"y": SERIES})
    torch.testing.assert_close(one.log_prob(locs), other.log_prob(locs), rtol=1e-6, atol=1e-6)


def test_an_unreachable_state_has_zero_gradient() -> None:
    """A chain that only moves right: most sums are over nothing, at log-weights of -inf."""

    def model(y: torch.Tensor) -> None:
        stay = pyro.sample("stay", dist.Beta(2.0, 2.0))
        zero = torch.zeros_like(stay)
        transition = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([zero, zero + 1.0])])
        state: Any = 0
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"state_{t}", dist.Categorical(Vindex(transition)[state]))
            pyro.sample(f"y_{t}", dist.Normal(3.0 * state, 1.0), obs=y[t])

    y = torch.tensor([0.0, 0.2, 3.1, 2.8])
    density = LogDensity(model, {"y": y})
    vector = torch.tensor([0.4], dtype=FLOAT64)
    p = float(torch.sigmoid(vector))
    weights = []
    for moves_at in range(5):  # the state is 1 from then on
        weight = moves_at * math.log(p) + (math.log(1 - p) if moves_at < 4 else 0.0)
        weight += sum(normal(float(v), 3.0 * (t >= moves_at)) for t, v in enumerate(y))
        weights.append(weight)
    expected = log_sum(weights) + math.log(6 * p * (1 - p)) + math.log(p * (1 - p))
    assert float(density.log_prob(vector)) == pytest.approx(expected, abs=1e-5)
    assert torch.autograd.gradcheck(density.log_prob, vector.requires_grad_())


def test_evidence_that_disagrees_does_not_underflow() -> None:
    """Each observation is 1,800 nats from one of the components, and they exclude each other."""

    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("a", dist.Normal(loc + 60 * k, 1.0), obs=y[0])
        pyro.sample("b", dist.Normal(loc + 60 * k, 1.0), obs=y[1])

    density = LogDensity(model, {"y": torch.tensor([0.0, 60.0])})
    each = math.log(0.5) + normal(0.0, 0.0) + normal(60.0, 0.0)
    got = density.log_prob(torch.zeros(1, dtype=FLOAT64))
    assert float(got) == pytest.approx(normal(0.0, 0.0) + each + math.log(2.0))


# --- Plates ---

GROUPS = torch.tensor([[0.3, 2.2], [1.5, -0.4]])


def grouped(y: torch.Tensor) -> None:
    """A group has a type; each of its members belongs to one of two kinds, by the group's type."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    kinds = y.new_tensor([[0.9, 0.1], [0.3, 0.7]])
    with pyro.plate("groups", y.shape[0], dim=-2):
        group = pyro.sample("group", dist.Categorical(y.new_tensor([0.4, 0.6])))
        with pyro.plate("members", y.shape[1], dim=-1):
            kind = pyro.sample("kind", dist.Categorical(Vindex(kinds)[group]))
            pyro.sample("y", dist.Normal(loc + 2.0 * kind, 1.0), obs=y)


def grouped_law(loc: float) -> dict[tuple[int, ...], float]:
    """Log-weights of (group_0, group_1, kind_00, kind_01, kind_10, kind_11)."""
    law = {}
    for outcome in itertools.product((0, 1), repeat=6):
        weight = 0.0
        for g in range(2):
            group = outcome[g]
            weight += math.log((0.4, 0.6)[group])
            for m in range(2):
                kind = outcome[2 + 2 * g + m]
                weight += math.log(((0.9, 0.1), (0.3, 0.7))[group][kind])
                weight += normal(float(GROUPS[g, m]), loc + 2.0 * kind)
        law[outcome] = weight
    return law


def test_nested_plates_against_brute_force() -> None:
    density = LogDensity(grouped, {"y": GROUPS})
    locs = torch.tensor([[-0.7], [0.2]], dtype=FLOAT64)
    expected = [normal(float(x), 0.0) + log_sum(list(grouped_law(float(x)).values())) for x in locs]
    torch.testing.assert_close(
        density.log_prob(locs), torch.tensor(expected, dtype=FLOAT64), rtol=1e-6, atol=1e-6
    )
    drawn = posterior(grouped, {"y": GROUPS}, loc=repeated(0.2, 20000)).discrete()
    assert drawn["group"].shape == (1, 20000, 2, 1)
    assert drawn["kind"].shape == (1, 20000, 2, 2)
    outcomes = torch.cat([drawn["group"][0, ..., 0], drawn["kind"][0].flatten(1)], -1)
    assert p_value(Counter(map(tuple, outcomes.tolist())), grouped_law(0.2)) > ALPHA


def test_a_chain_in_a_plate_against_brute_force() -> None:
    """Two series of three steps, each with its own path."""
    y = torch.tensor([[0.5, 1.4, -0.3], [2.0, 0.1, 0.9]])

    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        transition = y.new_tensor([[STAY, 1 - STAY], [1 - STAY, STAY]])
        with pyro.plate("series", len(y)):
            state: Any = 0
            for t in pyro.markov(range(y.shape[1])):
                state = pyro.sample(f"state_{t}", dist.Categorical(Vindex(transition)[state]))
                pyro.sample(f"y_{t}", dist.Normal(loc + state, 1.0), obs=y[:, t])

    law = {}
    for outcome in itertools.product((0, 1), repeat=6):
        weight = 0.0
        for series in range(2):
            path = (0, *outcome[3 * series : 3 * series + 3])
            for t in range(3):
                weight += math.log(STAY if path[t] == path[t + 1] else 1 - STAY)
                weight += normal(float(y[series, t]), 0.3 + path[t + 1])
        law[outcome] = weight
    density = LogDensity(model, {"y": y})
    got = density.log_prob(torch.tensor([0.3], dtype=FLOAT64))
    assert float(got) == pytest.approx(normal(0.3, 0.0) + log_sum(list(law.values())), abs=1e-5)
    drawn = posterior(model, {"y": y}, loc=repeated(0.3, 20000)).discrete()
    paths = torch.stack([drawn[f"state_{t}"][0] for t in range(3)], -1).flatten(1)
    assert p_value(Counter(map(tuple, paths.tolist())), law) > ALPHA


def test_many_variables_are_eliminated_in_a_good_order() -> None:
    """A chain of 200 steps and a star of 40 leaves: a bad order needs 2^40 elements."""
    for edges in ([(t, t + 1) for t in range(200)], [(0, leaf) for leaf in range(1, 41)]):
        terms = []
        for a, b in edges:
            table = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=FLOAT64).log()
            table._pyro_dims = chr(1000 + a) + chr(1000 + b)
            terms.append(table)
        start = torch.tensor([0.5, 0.5], dtype=FLOAT64).log()
        start._pyro_dims = chr(1000)
        dims = {chr(1000 + node) for edge in edges for node in edge}
        assert float(Elimination().sumproduct([start, *terms], dims)) == pytest.approx(0, abs=1e-12)


# --- Odd sites ---


def test_sites_of_every_kind_of_value() -> None:
    """Vectors, floats, a single value, one without data, one whose support is expanded."""

    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("single", dist.Categorical(y.new_tensor([1.0])))
        with pyro.plate("data", len(y)):
            one_hot = pyro.sample("one_hot", dist.OneHotCategorical(y.new_tensor([0.3, 0.7])))
            flag = pyro.sample("flag", dist.Bernoulli(y.new_tensor(0.5)))
            pyro.sample("unseen", dist.Bernoulli(y.new_tensor(0.25)))
            count = pyro.sample("count", dist.Binomial(2, 0.5), infer={"expand": True})
            mean = loc + 2 * one_hot[..., 1] + flag + count
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.5])
    drawn = posterior(model, {"y": y}, loc=repeated(0.1, 20000)).discrete()
    assert drawn["single"].shape == (1, 20000)
    assert bool((drawn["single"] == 0).all())
    assert drawn["one_hot"].shape == (1, 20000, 1, 2)
    assert bool((drawn["one_hot"].sum(-1) == 1).all())
    law = {}
    for hot, flag, unseen, count in itertools.product((0, 1), (0, 1), (0, 1), (0, 1, 2)):
        weight = math.log((0.3, 0.7)[hot]) + math.log((0.75, 0.25)[unseen])
        weight += math.log((0.25, 0.5, 0.25)[count]) + math.log(0.5)
        law[hot, flag, unseen, count] = weight + normal(0.5, 0.1 + 2 * hot + flag + count)
    columns = [drawn["one_hot"][0, :, 0, 1], *(drawn[n][0, :, 0] for n in ("flag", "unseen"))]
    outcomes = torch.stack([*columns, drawn["count"][0, :, 0]], -1).long()
    assert p_value(Counter(map(tuple, outcomes.tolist())), law) > ALPHA


def test_masks_take_part_and_scales_do_not() -> None:
    """As in the density, where the scale stands outside of the sum over the latent."""

    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.poutine.scale(scale=5.0), pyro.plate("data", 2):
            k = pyro.sample("k", dist.Bernoulli(y.new_tensor(0.3)))
            with pyro.poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("y", dist.Normal(loc + 2 * k, 1.0), obs=y)

    drawn = posterior(model, {"y": torch.tensor([1.5, 1.5])}, loc=repeated(0.1, 20000)).discrete()
    law = {}
    for a, b in itertools.product((0, 1), repeat=2):
        prior = math.log((0.7, 0.3)[a]) + math.log((0.7, 0.3)[b])
        law[a, b] = prior + normal(1.5, 0.1 + 2 * a)
    outcomes = Counter(map(tuple, drawn["k"][0].long().tolist()))
    assert p_value(outcomes, law) > ALPHA


def test_axes_without_a_plate_share_their_latent() -> None:
    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(y.new_tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", dist.Normal(loc + 2.0 * k, 1.0), obs=y)

    y = torch.tensor([0.3, 1.0, 2.0])
    density = LogDensity(model, {"y": y})
    weights = [
        math.log(w) + sum(normal(float(v), 0.4 + 2 * k) for v in y)
        for k, w in enumerate((0.2, 0.3, 0.5))
    ]
    got = float(density.log_prob(torch.tensor([0.4], dtype=FLOAT64)))
    assert got == pytest.approx(normal(0.4, 0.0) + log_sum(weights), abs=1e-5)
    result = posterior(model, {"y": y}, loc=repeated(0.4, 10))
    with pytest.raises(ValueError, match="k ties observations together"):
        result.log_likelihood()


def test_what_cannot_be_summed_out_is_refused() -> None:
    def unplated(y: torch.Tensor) -> None:
        pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(y.new_tensor([0.2, 0.3])))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    with pytest.raises(SiteError, match=r"'k'.*pyro\.plate"):
        LogDensity(unplated, {"y": torch.zeros(2)})

    def unequal(y: torch.Tensor) -> None:
        pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            k = pyro.sample("k", dist.Binomial(torch.tensor([2, 3]), y.new_tensor(0.5)))
            pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    with pytest.raises(SiteError, match=r"'k'.*same finite set of values everywhere"):
        LogDensity(unequal, {"y": torch.zeros(2)})

    def bounded(y: torch.Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(y.new_tensor([0.5, 0.5])))
        z = pyro.sample("z", dist.Uniform(y.new_tensor(0.0), 1.0 + k))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(SiteError, match=r"'z'.*one support"):
        LogDensity(bounded, {"y": torch.tensor(0.0)})

    def branching(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(y.new_tensor(0.5)))
        pyro.sample("y", dist.Normal(loc if k == 1 else -loc, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"(?s)all values of its discrete latents at once.*Vindex"):
        LogDensity(branching, {"y": torch.tensor(0.0)})


# --- Posteriors ---


def shared(y: torch.Tensor | None = None, n: int = 4) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=mean.dtype)))
    with pyro.plate("data", n if y is None else len(y)):
        pyro.sample("y", dist.Normal(mean + 10 * k, 1.0), obs=y)


def test_predictions_keep_to_the_posterior_of_what_is_shared() -> None:
    """Drawing k from its prior would forget what the data say of it."""
    result = fit(shared, {"y": torch.full((4,), 10.0)}, SVI(steps=5, draws=200), progress=False)
    assert bool((result.discrete()["k"] == 1).all())
    own = result.predict()["y"]
    assert own.shape == (1, 200, 4)
    # Five from the mean of 10, where |mean| < 4 at all draws of this seed; 0 is as far away.
    assert bool((own > 2).all())
    new = result.predict({"n": 7}, draws=20)["y"]
    assert new.shape == (1, 20, 7)
    assert bool((new > 2).all())
    assert "k" not in result.draws


def test_predictions_of_rows_draw_their_latents_anew() -> None:
    """All rows were seen near the second component; new ones are of both."""
    locs = torch.tensor([-20.0, 0.0, 20.0])
    result = posterior(mixture, {"y": torch.zeros(4)}, locs=repeated(locs, 2000))
    result = Posterior(**{**vars(result), "observed": ("y",)})
    near = (result.predict()["y"][0].unsqueeze(-1) - locs).abs().argmin(-1)
    seen = Counter(near.flatten().tolist())
    law = {k: math.log(w) for k, w in enumerate((0.2, 0.3, 0.5))}
    assert p_value(seen, law) > ALPHA


def test_a_longer_series_continues_the_chain() -> None:
    """Forecasts start at the posterior of the last state, which stays with probability 0.8."""

    def model(y: torch.Tensor, steps: int = 3) -> None:
        loc = pyro.sample("loc", dist.Normal(y.new_tensor(0.0), 1.0))
        transition = y.new_tensor([[STAY, 1 - STAY], [1 - STAY, STAY]])
        state: Any = 0
        for t in pyro.markov(range(steps)):
            state = pyro.sample(f"state_{t}", dist.Categorical(Vindex(transition)[state]))
            obs = y[t] if t < len(y) else None
            pyro.sample(f"y_{t}", dist.Normal(loc + 100.0 * state, 1.0), obs=obs)

    y = torch.tensor([0.0, 100.0, 100.0], dtype=FLOAT64)
    result = posterior(model, {"y": y}, loc=repeated(0.0, 1000))
    result = Posterior(**{**vars(result), "observed": ("y_0", "y_1", "y_2")})
    longer = {"y": torch.cat([y, y[:1]]), "steps": 4}
    assert bool((result.predict()["y_2"] > 50).all())
    result = Posterior(**{**vars(result), "observed": ("y_2", "y_3")})
    stays = (result.predict(longer)["y_3"] > 50).double().mean()
    # Standard error sqrt(0.16 / 1000) = 0.0126; four of them.
    assert float(stays) == pytest.approx(STAY, abs=0.051)


def test_what_discrete_cannot_do_is_said() -> None:
    def plain(y: torch.Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(ValueError, match="no discrete latents"):
        posterior(plain, {"y": torch.tensor(1.0)}, z=repeated(0.0, 3)).discrete()
    bare = posterior(mixture, {"y": Y}, locs=repeated([0.0, 1.0, 2.0], 3))
    with pytest.raises(ValueError, match="holds no data"):
        Posterior(**{**vars(bare), "data": None}).discrete()
    with pytest.raises(ValueError, match="without its pair"):
        Posterior(**{**vars(bare), "pair": None}).discrete()
    longer = Posterior(**{**vars(posterior(grouped, {"y": GROUPS}, loc=repeated(0.0, 3)))})
    longer = Posterior(**{**vars(longer), "observed": ("y",)})
    with pytest.raises(SiteError, match=r"'group'.*shape \(2, 1\).*\(3, 1\)"):
        longer.predict({"y": torch.zeros(3, 2)})


# --- Elimination ---


def term(values: Any, dims: str) -> torch.Tensor:
    """A packed tensor of log-weights."""
    table = torch.as_tensor(values, dtype=FLOAT64).log()
    table._pyro_dims = dims
    return table


def test_sums_over_nothing_are_minus_infinity_with_zero_gradient() -> None:
    logits = torch.tensor([[0.3, -math.inf], [0.9, -math.inf]], dtype=FLOAT64, requires_grad=True)
    table = logits * 1.0
    table._pyro_dims = "xy"
    total = Elimination().sumproduct([table], "x")
    assert total.tolist() == [pytest.approx(math.log(math.exp(0.3) + math.exp(0.9))), -math.inf]
    (gradient,) = torch.autograd.grad(total[0], logits, retain_graph=True)
    torch.testing.assert_close(gradient[:, 0], logits.detach()[:, 0].softmax(0))
    assert gradient[:, 1].tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(total.exp().sum(), logits)
    assert bool(torch.isfinite(gradient).all())
    unknown = term([math.nan, 1.0], "x")
    assert bool(Elimination().sumproduct([unknown], "x").isnan())


def test_a_factor_without_a_plate_is_drawn_anew_for_each_of_its_elements() -> None:
    ring = Elimination({"x": 2, "n": 10000})
    ring.sumproduct([term([0.3, 0.7], "x")], "x")
    drawn = ring.draw({"x": frozenset("n")})["x"]
    assert drawn.shape == (10000,)
    law = {0: math.log(0.3), 1: math.log(0.7)}
    assert p_value(Counter(drawn.tolist()), law) > ALPHA


def test_a_discrete_site_of_a_single_value() -> None:
    def one_component(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(1)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    method = NUTS(chains=2, draws=3, warmup=3, engine="eager")
    posterior = fit(one_component, {"x": torch.zeros(4)}, method, progress=False)
    assert torch.equal(posterior.discrete()["z"], torch.zeros(2, 3, 4, dtype=torch.long))
