"""What the host does for a picture: all of the preprocessing, or decoding and cutting out alone (--preprocess device).

    python benchmarks/preprocessing.py [--rounds 40]

Milliseconds, medians of interleaved rounds, one thread, for a 224 x 224 network (resize 256, bicubic). `array` is a
decoded uint8 array (a camera's frame), `jpeg` and `png` are files; the megabytes go up to the GPU. The GPU's own
part, the upload and two kernels, is not in it: no GPU was there to time it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mscope.core.config import config_for
from mscope.core.manifest import Preprocessing
from mscope.runtime.preprocess import Preprocessor, Unscaled

SIZES = ((480, 640), (1080, 1920), (3000, 4000))


def picture(height: int, width: int) -> Any:
    """Smooth shapes and some noise, so that files have a usual size."""
    rows, columns = np.linspace(0, 9, height)[:, None, None], np.linspace(0, 12, width)[None, :, None]
    smooth = 128 + 90 * np.sin(rows + np.arange(3)) * np.cos(columns - np.arange(3))
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 3:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    config = config_for("ti", "mambascope")
    prepare = Preprocessor(Preprocessing(resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), config)
    with tempfile.TemporaryDirectory() as folder:
        for height, width in SIZES:
            array = picture(height, width)
            given: dict[str, Any] = {"array": array}
            for kind in ("jpeg", "png"):
                given[kind] = Path(folder) / f"{height}.{kind}"
                Image.fromarray(array).save(given[kind])
            for kind, image in given.items():
                calls = {"all": lambda image=image: prepare(image), "left": lambda image=image: prepare.unscaled(image)}
                took = medians(calls, rounds)
                unscaled = prepare.unscaled(image)
                assert isinstance(unscaled, Unscaled)
                share, up = took["left"] / took["all"], unscaled.crop.pixels.nbytes / 1e6
                print(
                    f"{width} x {height} {kind:5s}  all on the host {took['all']:7.2f}  "
                    f"left on the host {took['left']:7.2f}  ({share:.0%}, {up:.1f} MB up)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
