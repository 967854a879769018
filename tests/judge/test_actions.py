"""Lines of code that say what to do next: each can be pasted, and does what it says."""

import ast
import dataclasses
import math

import pytest
import torch
from made import guide, normal, posterior

from ppl_gen.core import Posterior
from ppl_gen.judge import actions, assess
from ppl_gen.judge.findings import Gate

CHAINS = posterior(normal(0))


def weighed() -> Posterior:
    """Draws of N(0, 1.5^2) with their densities, and those of N(0, 1)."""
    found = guide(1.5 * normal(6, scalars=1))
    x = found["x"][..., 0]
    stats = {"lp": -0.5 * x**2, "log_q": -0.5 * (x / 1.5) ** 2 - math.log(1.5)}
    return dataclasses.replace(found, sample_stats=stats)


def fitted(guide_name: str, **options: object) -> Posterior:
    facts = {"method": "SVI", "options": {"guide": guide_name, **options}}
    return guide(normal(1), provenance=facts)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            actions.better_guide("svi", fitted("mean_field"), ended=True),
            'svi = pg.fit(pair, data, SVI(guide="full_rank"))',
        ),
        (
            actions.better_guide("svi", fitted("mean_field", steps=500), ended=False),
            'svi = pg.fit(pair, data, SVI(guide="mean_field", steps=1000))',
        ),
        (
            actions.better_guide("my fit", fitted("full_rank"), ended=None),
            'posteriors["my fit"] = pg.fit(pair, data, SVI(guide="flow"))',
        ),
        (
            actions.better_guide("svi", fitted("flow"), ended=True),
            "repaired = pg.repair(pair, data, svi)",
        ),
        (
            actions.better_guide("svi", fitted("mean_field"), ended=True, misplaced=True),
            "repaired = pg.repair(pair, data, svi)",
        ),
        (
            actions.better_guide("svi", guide(normal(1)), ended=True),
            "svi = pg.fit(pair, data, NUTS())",
        ),
        (actions.reweight("svi"), "svi = svi.reweight()"),
        # Twice as many as 1,000 in each chain: the chains cannot be gone on with.
        (actions.more_draws("nuts", CHAINS, 2.0), "nuts = pg.fit(pair, data, NUTS(draws=2000))"),
    ],
)
def test_lines(line: str, expected: str) -> None:
    assert line == expected
    ast.parse(line)


def test_chains_with_a_checkpoint_are_gone_on_with() -> None:
    chains = posterior(normal(0), checkpoint={"position": torch.zeros(4, 3)})
    gate = Gate("nuts", "reference", False, "nuts: ...", {"r_hat": 1.02, "ess": 250.0})
    # 400 / 250 times 1.25 for certainty is twice as many.
    assert actions.longer_chains("nuts", chains, gate) == "nuts = nuts.extend(1000)"
    apart = Gate("nuts", "reference", False, "nuts: ...", {"r_hat": 1.5, "ess": 7.0})
    line = actions.longer_chains("nuts", chains, apart)
    assert line == "nuts = pg.fit(pair, data, NUTS(warmup=4000, draws=4000))"
    ast.parse(line)


@pytest.mark.parametrize("name", ["class", "mean-field", "größe", "2nd", "a b", 'a"b\\', "pair"])
def test_a_name_that_is_no_variable_is_looked_up(name: str) -> None:
    """The lines run on the dictionary that was compared."""
    posteriors = {name: weighed()}
    for line in (actions.reweight(name), actions.more_draws(name, CHAINS, 2.0)):
        ast.parse(line)
        assert line.startswith("posteriors[")
    exec(actions.reweight(name), {"posteriors": posteriors})
    assert "reweighted" in posteriors[name].provenance


def test_lines_of_every_verdict_look_names_up() -> None:
    """A reference that is too short, one of its own, draws without spread, a guide to be mended."""
    few, many = posterior(normal(2, draws=80)), posterior(normal(3))
    found = assess({"a b": few, "c-d": guide(normal(4)), "e f": guide(0 * normal(5))})
    found_alone = assess({"g h": weighed()})
    lines = [j.action for f in (found, found_alone) for j in f.judgements.values()]
    lines += [j.action for j in assess({"n": many, "0": guide(normal(1) / 2)}).judgements.values()]
    for line in filter(None, lines):
        ast.parse(line)
        assert "posteriors[" in line
        assert "posterior " not in line
    assert len(list(filter(None, lines))) == 5
