"""The table of densities: each model of images, on binarized images and on grays.

    python benchmarks/densities.py --data-dir DIR      MNIST from DIR/MNIST/raw, else a download

Ten models, each trained for `--minutes` on images binarized anew each time they are read, and again
on gray ones: about an hour with the default of 2.5 minutes on two free cores. Models that the
results have already are kept, so that a run that was stopped goes on with the same command;
`--again` drops them, which other images or another time need. Without MNIST the 8x8 digits of
scikit-learn are taken, and the page says so. With `--device cuda` the models have about the
published sizes, and 30 minutes each: ten hours.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from likelihoods.densities import MODELS, OtherResultsError, measure  # noqa: E402
from likelihoods.density_tables import TABLES  # noqa: E402
from pages import write_tables  # noqa: E402

from ppl_gen.data import DatasetUnavailableError, load_images  # noqa: E402

MINUTES, MINUTES_ON_GPU = 2.5, 30.0


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--dataset", default="auto", help="auto (default), mnist or digits")
    parser.add_argument("--minutes", type=float, help="for each model: 2.5, on a GPU 30")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--again", action="store_true", help="keep no results")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--page", type=Path, help="page for the tables")
    options = parser.parse_args(arguments)
    gpu = options.device != "cpu"
    out = options.out or FOLDER / "results" / f"densities{'_gpu' if gpu else ''}.json"
    page = options.page or FOLDER.parent / "docs" / "densities.md"
    minutes = options.minutes or (MINUTES_ON_GPU if gpu else MINUTES)
    try:
        dataset = load_images(options.dataset, options.data_dir)
    except (DatasetUnavailableError, ValueError) as error:
        sys.exit(f"error: {error}")
    if dataset.note:
        print(f"Note: {dataset.note}\n")
    kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() and not options.again else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for results in measure(dataset, minutes, options.device, kept, tuple(options.only)):
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            write_tables(results, page, TABLES)
    except OtherResultsError as error:
        sys.exit(f"error: in {out}, {error}. Drop them by --again, or give another file by --out.")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
    print(f"Written: {out} and {page}")


if __name__ == "__main__":
    main()
