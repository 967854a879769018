"""What `import ppl_gen` costs over importing torch and pyro, in fresh processes, side by side.

Goal: at most 0.3 s more. Prints medians and keeps them in results/import_time.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

GOAL_SECONDS = 0.3
CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
BASE, OURS = "torch, pyro", "torch, pyro, ppl_gen"


def seconds(modules: str) -> float:
    """Return the seconds that importing takes in a new process."""
    command = [sys.executable, "-c", CODE.format(modules)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each, in turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    seconds(OURS)  # fills the file cache
    rounds = [(seconds(BASE), seconds(OURS)) for _ in range(options.rounds)]
    extra = [ours - base for base, ours in rounds]
    result = {
        "seconds_torch_and_pyro": statistics.median(base for base, _ in rounds),
        "seconds_with_ppl_gen": statistics.median(ours for _, ours in rounds),
        "extra_seconds": {
            "median": statistics.median(extra),
            "min": min(extra),
            "max": max(extra),
            "goal": GOAL_SECONDS,
        },
        "rounds": options.rounds,
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "import_time.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
