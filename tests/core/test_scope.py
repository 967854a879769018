"""What is set for a run, and put back."""

from __future__ import annotations

from torch import nn

from ppl_gen.core.scope import evaluating


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_each_part_is_put_back_in_its_own_mode() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Linear(1, 1).eval())
    with evaluating(module):
        assert modes(module) == [False] * 3
    assert modes(module) == [True, True, False]


def test_blocks_that_overlap_end_with_the_last() -> None:
    # As those of two threads do.
    part = nn.Dropout()
    whole = nn.Sequential(part)
    one, other = evaluating(whole), evaluating(part)
    with one:
        other.__enter__()
    assert modes(whole) == [True, False]
    other.__exit__(None, None, None)
    assert modes(whole) == [True, True]
