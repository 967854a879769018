"""Lines of code that say what to do next: each can be pasted, and does what it says."""

import ast

import pytest
import torch
from made import guide, normal, posterior

from ppl_gen.core import Posterior
from ppl_gen.judge import actions
from ppl_gen.judge.findings import Gate

CHAINS = posterior(normal(0))


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
            'posterior = pg.fit(pair, data, SVI(guide="flow"))',
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


@pytest.mark.parametrize("name", ["class", "mean-field", "größe", "2nd", "a b"])
def test_a_name_that_is_no_variable(name: str) -> None:
    assert actions.variable(name) == "posterior"
