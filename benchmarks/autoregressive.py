"""Autoregressive likelihoods: sampling, training and what is reached, each beside the plain way.

    python benchmarks/autoregressive.py --data-dir DIR --audio-dir DIR

Three parts, on two free cores about an hour together:

- "sampling" (10 minutes): elements a second of the compiled sampler, beside running the network
  anew for each element. The plain way takes as long for each element, so that a few are timed and
  multiplied by their number; of a WaveNet it runs the network over the receptive field alone. Both
  take turns. All draws are checked by one run of the network: a tie is an element that it would
  have drawn otherwise. Also seconds of planning and compiling, and memory by length.
- "training" (5 minutes): a step of `pg.fit`, beside the same network in a loop written by hand.
- "truth" (four times `--seconds`, and a minute): MADE on binarized MNIST, a gated PixelCNN on
  images of 14 x 14 pixels beside MADE trained as long, and a WaveNet on spoken digits. MNIST is
  taken from `--data-dir`, or downloaded; without it the part is left out. Recordings are taken from
  `--audio-dir`; without them the WaveNet learns synthetic vowels, for which there is no goal.

With `--device cuda`: a WaveNet of 30 layers at 16 kHz, and the goals of half an hour on a GPU. That
was never run where these results come from. Parts that are not run keep the results they have, and
the tables of docs/autoregressive.md are written from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from likelihoods import sampling, training, truth  # noqa: E402
from likelihoods.tables import TABLES  # noqa: E402
from pages import write_tables  # noqa: E402

from ppl_gen.data import DatasetUnavailableError  # noqa: E402

PARTS = ("sampling", "training", "truth")


def machine(device: str) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    parser.add_argument("--seconds", type=float, help="of a training: 600, on a GPU 1800")
    parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--audio-dir", type=Path, help="folder that holds recordings/*.wav")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--page", type=Path, help="page for the tables")
    options = parser.parse_args()
    name = "autoregressive" if options.device == "cpu" else "autoregressive_gpu"
    out = options.out or FOLDER / "results" / f"{name}.json"
    page = options.page or FOLDER.parent / "docs" / "autoregressive.md"
    results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    measures = {
        "sampling": lambda: sampling.measure(options.rounds, options.device),
        "training": lambda: training.measure(options.rounds, options.device),
        "truth": lambda: truth.measure(
            options.seconds, options.data_dir, options.audio_dir, options.device
        ),
    }
    for part in options.parts:
        print(f"-- {part}", flush=True)
        where = machine(options.device)
        try:
            results[part] = {"machine": where, **measures[part]()}
        except DatasetUnavailableError as error:
            print(f"left out: {error}", flush=True)
            continue
        # After each part, so that stopping in the next one loses nothing.
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.device == "cpu":
        write_tables(results, page, TABLES)


if __name__ == "__main__":
    main()
