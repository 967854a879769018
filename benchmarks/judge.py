"""The judge judged: verdicts where the answer is known, by construction or by theory, and the cost.

    python benchmarks/judge.py --posteriordb ../shared/data/posteriordb

Three parts:

- "cases": generated posteriors, approximations and references whose errors are known exactly
  (`judge_cases/`), from seeds that nothing was tuned on. Each verdict is compared with the truth.
- "known": models fitted by the package over seeds, of which it is known what has to come out.
- "cost": seconds and memory of a comparison with its report, in a process of its own.

Results go to results/judge.json, and from there the tables to docs/judge.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "tests" / "posteriordb")]

from judge_cases import Case, Outcome, generate, outcome_of  # noqa: E402
from judge_cases.known import known_answers  # noqa: E402
from judge_cases.summary import NARROWER, summary  # noqa: E402
from judge_cases.tables import TABLES  # noqa: E402
from pages import write_tables  # noqa: E402

from ppl_gen.judge.assess import assess  # noqa: E402

PARTS = ("cases", "known", "cost")
HELD_OUT, DEVELOPMENT = "held out", "development"
COST_RUNS = 3
# Those before have been looked at.
FIRST = {HELD_OUT: 2400, DEVELOPMENT: 0}

Record = dict[str, Any]


def judge(case: Case) -> Record:
    """Judge one case and say what the verdict is worth."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = assess(case.posteriors(), case.reference_name, seed=case.number)
    judgement = found.judgements["guide"]
    seconds = time.perf_counter() - began
    outcome = outcome_of(case, judgement.verdict)
    record: Record = {
        "number": case.number,
        "kind": case.kind,
        "label": case.errors.label().value,
        "quality": case.reference.quality.value,
        "verdict": judgement.verdict.value,
        "outcome": outcome.value,
        "narrower": {
            str(margin): (
                case.errors.label(margin).value,
                outcome_of(case, judgement.verdict, margin).value,
            )
            for margin in NARROWER
        },
        "errors": {name: round(value, 3) for name, value in asdict(case.errors).items()},
        "beyond": round(max(case.errors.of_means, case.errors.of_others), 3),
        "seconds": round(seconds, 3),
    }
    if outcome not in (Outcome.RIGHT, Outcome.APART):
        record |= {"case": str(case), "sentence": judgement.sentence}
    return record


def _judged(split: Any, number: int) -> Record:
    return judge(generate(split, number))


def run_cases(split: str, numbers: Iterable[int], processes: int) -> list[Record]:
    """Judge cases in several processes, and say how far it is."""
    numbers = list(numbers)
    records: list[Record] = []
    # A fresh process has no threads of PyTorch's that a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(_judged, split, number) for number in numbers]
        for done, future in enumerate(futures, 1):
            records.append(future.result())
            if done % 100 == 0 or done == len(numbers):
                failed = Counter(r["outcome"] for r in records)
                print(f"{done} of {len(numbers)} cases: {dict(failed)}", flush=True)
    return records


def cost() -> Record:
    """Measure comparisons, without and with a model, in processes of their own."""
    script = FOLDER / "judge_cases" / "cost.py"
    found: Record = {"goal_seconds": 20.0, "goal_peak_mib": 1024.0, "goal_report_mib": 2.0}
    for name, options in (("draws", []), ("fitted", ["--fitted"])):
        runs = []
        for _ in range(COST_RUNS):
            with tempfile.TemporaryDirectory() as scratch:
                out = ["--out", str(Path(scratch) / "report.html")]
                command = [sys.executable, str(script), *out, *options]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{script} failed: {done.stderr.strip()}")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, runs[-1], flush=True)
        found[name] = max(runs, key=lambda run: run["seconds"])
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", type=int, default=1200, help="number of cases")
    parser.add_argument("--first", type=int, help="number of the first case")
    parser.add_argument(
        "--development", action="store_true", help="the cases to tune on; nothing is written"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=20, help="of the known answers")
    parser.add_argument("--posteriordb", type=Path, help="folder of the posteriors of posteriordb")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "judge.json")
    parser.add_argument("--docs", type=Path, default=FOLDER.parent / "docs" / "judge.md")
    options = parser.parse_args()
    # Each process has a core to itself.
    os.environ["OMP_NUM_THREADS"] = "1"
    split = DEVELOPMENT if options.development else HELD_OUT
    first = FIRST[split] if options.first is None else options.first
    numbers = range(first, first + options.cases)
    if options.development:
        found = summary(run_cases(split, numbers, options.processes))
        print(json.dumps(found, indent=1))
        return
    results: Record = {}
    if options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    results["machine"] = {"cores": os.cpu_count(), "python": platform.python_version()}
    if "cases" in options.parts:
        began = time.perf_counter()
        records = run_cases(split, numbers, options.processes)
        elapsed = {"wall_seconds": time.perf_counter() - began, "processes": options.processes}
        results["cases"] = summary(records) | elapsed
    if "known" in options.parts:
        results["known"] = known_answers(options.seeds, options.posteriordb)
    if "cost" in options.parts:
        results["cost"] = cost()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_tables(results, options.docs, TABLES)


if __name__ == "__main__":
    main()
