"""What two runs differ in, in words that can be read."""

from ppl_gen.core.identity import differences


def test_differences_name_what_was_and_is() -> None:
    before = {"option": {"epochs": 2, "seed": 0}, "pair": {"size": 3}}
    after = {"option": {"epochs": 3, "seed": 0, "clip": 1.0}, "pair": {}}
    assert differences(before, before) == []
    assert differences(before, after) == [
        "option 'epochs' was 2, is 3",
        "option 'clip' was none, is 1.0",
        "pair 'size' was 3, is none",
    ]


def test_very_many_of_a_kind_are_counted() -> None:
    before = {"pair": {"features": 16}, "parameter": {f"weight_{i}": "(16,)" for i in range(40)}}
    after = {"pair": {"features": 8}, "parameter": {f"weight_{i}": "(8,)" for i in range(40)}}
    told = differences(before, after)
    assert told[:2] == ["pair 'features' was 16, is 8", "parameter 'weight_0' was (16,), is (8,)"]
    assert len(told) == 7
    assert told[-1] == "and 35 more like it"
    # None is left out where there are few.
    few = {"parameter": {f"weight_{i}": "(8,)" for i in range(5)}}
    assert len(differences({"parameter": {}}, few)) == 5
