"""The paper's ablations on cluttered digits: a JSON file, the tables of docs/ablations.md and their picture.

    OMP_NUM_THREADS=1 python benchmarks/ablations             # all of it, about an hour on one free core
    OMP_NUM_THREADS=1 python benchmarks/ablations train       # fine-tunes the variants that need it
    OMP_NUM_THREADS=1 python benchmarks/ablations inference   # the others, and the JSON file from all that is trained
    python benchmarks/ablations report                        # tables and picture from the JSON file

`train` and `inference` keep every finished run below --work, and go on there when they were stopped. Needs the extra
`calib` and the package installed (or the source roots on PYTHONPATH).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ablations import results
from ablations.collect import collect
from ablations.plots import plot
from ablations.tables import insert, render
from ablations.trained import train_all
from ablations.variants import SEEDS
from mscope.core.errors import InputError, MscopeError
from mscope.core.files import write_text_atomically
from mscope.model.training.digits import Digits

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "ablations.json"
DOCUMENT = ROOT / "docs" / "ablations.md"
PICTURE = ROOT / "docs" / "images" / "ablations.png"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", "train", "inference", "report"), default="all")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "ablations", help="where finished runs are kept")
    parser.add_argument("--pictures", type=int, default=4000, help="of the test split")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the trained variants")
    parser.add_argument("--machine", default="not said", help="a few words for the JSON file")
    options = parser.parse_args()
    try:
        run(options)
    except MscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(options: argparse.Namespace) -> None:
    """Does the parts that were asked for."""
    if options.pictures < 1:
        raise InputError(f"--pictures is a number from 1 on, got {options.pictures}")
    if options.part != "report":
        pictures = Digits("test").batch(0, options.pictures)
    if options.part in ("all", "train"):
        train_all(options.work, pictures, seeds=options.seeds, say=_say)
    if options.part in ("all", "inference"):
        found = collect(options.work, pictures, machine=options.machine, seeds=options.seeds, say=_say)
        write_text_atomically(RESULT, found.model_dump_json(indent=1, exclude_none=True) + "\n")
    if options.part in ("all", "report"):
        found = results.load(RESULT)
        document = insert(DOCUMENT.read_text(encoding="utf-8"), render(found))
        write_text_atomically(DOCUMENT, document)
        plot(found, PICTURE)
        print(RESULT, DOCUMENT, PICTURE, sep="\n")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
