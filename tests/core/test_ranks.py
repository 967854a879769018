"""Ranks: what two real processes exchange, and how one hears of the other's end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from ppl_gen.core.ranks import Ranks, ranks

Said = list[dict[str, Any]]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What each of two processes under torchrun has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parent / "ranks_script.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_alone_nothing_happens() -> None:
    here = ranks()
    assert (here.index, here.size, here.first) == (0, 1, True)
    value, rows = torch.tensor([1.0, 2.0]), torch.ones(3, 2)
    here.average_([value])
    here.broadcast_([value])
    assert value.tolist() == [1.0, 2.0]
    assert here.joined(rows) is rows
    assert here.gather(b"abc") == [b"abc"]
    assert here.from_first(here) is here
    assert here.differing({"a": value}) is None
    assert here.own_seed(7, 3) == 7
    assert here.own_device(torch.device("cuda")) == torch.device("cuda")
    with here.run(""):
        here.check()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("count", "size"), [(4, 2), (5, 2), (7, 3), (1024, 1000), (3, 5)])
def test_shares_are_a_partition_into_even_blocks(count: int, size: int) -> None:
    shares = [Ranks(index, size).share(count) for index in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert {len(share) for share in shares} <= {count // size, -(-count // size)}


def test_what_is_exchanged(said: Said) -> None:
    for index, one in enumerate(said):
        assert one["size"] == 2
        assert one["means"] == [[0.5, 5.0], 0.5, [[2.0, 2.0]], [0.5]]
        assert one["copied"] == [[0, 5], [True, True]]
        assert one["gathered"] == ["", "ab"]
        assert one["to_first"] == ([] if index else ["xx", "x"])
        assert one["joined"] == [[1, 1]]
        assert one["empty"] == [1, 0]
        assert one["from_first"] == {"rank": 0, "text": "ü"}
        assert one["differing"] == [None, "b"]
        assert one["chains"] == ([2, 3, 4] if index else [0, 1])
    seeds = [seed for one in said for seed in one["seeds"]]
    assert len(set(seeds)) == len(seeds)


def test_nothing_global_is_left_changed(said: Said) -> None:
    for one in said:
        assert not one["loopback"]
        assert one["handler"]


def test_ranks_have_to_fit_the_same(said: Said) -> None:
    for what, difference in (
        ("another seed", "option 'seed' was 0, is 1"),
        ("other data", r"data 'y' was () float32 with digest"),
    ):
        kind, message, _, _ = said[1][what]
        assert kind == "ValueError"
        assert "process 1 is to fit something else than process 0" in message
        assert difference in message
        kind, message, _, rank = said[0][what]
        assert (kind, rank) == ("RankError", 1)
        assert difference in message


def test_a_failure_of_one_rank_is_told_to_the_other(said: Said) -> None:
    kind, message, _, _ = said[1]["broken"]
    assert (kind, "the model of one rank is broken" in message) == ("ValueError", True)
    kind, message, seconds, rank = said[0]["broken"]
    assert (kind, rank) == ("RankError", 1)
    assert "rank 1 failed: " in message
    assert "the model of one rank is broken" in message
    assert "resume=True" in message
    assert seconds < 30


def test_more_ranks_than_chains_are_refused(said: Said) -> None:
    for one in said:
        kind, message, _, _ = one["too few"]
        # Whoever finds it first tells the other, which may have found it too.
        assert kind in ("ValueError", "RankError")
        assert "1 chains cannot be spread over 2 processes" in message
        assert "NUTS(chains=2)" in message


def test_a_rank_that_stands_still_is_named(said: Said) -> None:
    for one in said:
        message, rank = one["stopped"]
        assert rank == 1
        assert message.startswith("rank 1 has died: nothing was heard of it for ")
        assert message.endswith("s. Begin anew.")


def test_a_fit_after_all_these_errors_runs(said: Said) -> None:
    for one in said:
        assert one["afterwards"] == []


def test_a_killed_rank_ends_the_other(said: Said) -> None:
    """By SIGKILL, without torchrun: also rank 0, which takes the store with it, and also where the
    user has made the process group."""
    for victim, (message, rank, seconds) in enumerate(said[0]["killed"]):
        assert rank == victim
        assert message.startswith(("rank 1 has died.", "rank 0 or torchrun, where ranks meet, is"))
        assert message.endswith("Begin anew.")
        assert seconds < 30


def test_what_a_failed_run_has_left_does_not_abort_the_process() -> None:
    """A rank gives up a collective, whose thread hears of the other rank's end while this one's
    interpreter ends: before works were held, this was SIGABRT each time."""
    script = Path(__file__).parent / "ranks_exit_script.py"
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(get_free_port()), "LOCAL_WORLD_SIZE": "2"}
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    other, own = processes
    assert own.stdout is not None
    try:
        assert own.stdout.readline() == "given up\n"
        other.kill()
        _, said = own.communicate(timeout=120)
        assert own.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
