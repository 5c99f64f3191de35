"""Writes test pictures of the digits model as PNG files, to run `mscope-run` on.

    python examples/digit_pictures.py pictures --count 12

Each name says whether the digit is large (easy) or small (hard), and the right answer: easy-00-label7.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mscope.model.training.digits import write_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = write_samples(options.folder, options.count, seed=options.seed)
    print(f"{len(paths)} pictures in {options.folder}")


if __name__ == "__main__":
    main()
