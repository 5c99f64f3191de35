"""Checks of the runtime's own device parts: tests/gpu runs them on a GPU, tests/runtime on the kernels' host run.

So a mistake in them shows before a GPU is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mscope.core.cascade import confidence, exits_early, select_regions
from mscope.core.config import make_config
from mscope.core.contract import Tensor
from mscope.core.manifest import Preprocessing
from mscope.plugins.cuda_select import SelectParams, confidence_margin, select
from mscope.runtime.device.branch import Branches, why_no_branches
from mscope.runtime.device.clock import EventClock
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.pictures import PictureStage
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import StagedTensor
from mscope.runtime.preprocess import Preprocessor, Unscaled

SIDE = 224
# Height, width: small, extreme, tall enough for Pillow 13 to take the rows first, large, the right size.
SIZES = ((1, 1), (1, 500), (500, 1), (3, 2000), (2000, 3), (480, 640), (1400, 300), (1080, 1920), (SIDE, SIDE))


class Place:
    """A device, a stream and memory, given back at the end."""

    def __enter__(self) -> Place:
        self.device = Device()
        self.memory, self.stream = Memory(self.device), Stream(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.memory.release()

    def staged(self, name: str, dtype: Any, shape: tuple[int, ...], rows: int = 1) -> StagedTensor:
        return StagedTensor(self.device, self.memory, self.stream, Tensor(name, dtype, ("batch", *shape)), rows)


def preprocessor(mode: str, interpolation: Any, side: int) -> Preprocessor:
    channels = {"RGB": 3, "L": 1}[mode]
    fields = {"size": "x", "d_model": 4, "depth": 2, "patch": 8, "channels": channels, "height": side, "width": side}
    recipe = Preprocessing(
        mode=mode,  # type: ignore[arg-type]
        resize=side * 8 // 7,
        interpolation=interpolation,
        mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels],
    )
    return Preprocessor(recipe, make_config(fields | {"classes": 10}))


def check_pictures(mode: str, interpolation: str, side: int = SIDE, sizes: Any = SIZES) -> None:
    """Pictures of all sizes in one batch: the host's tensors, bit for bit, three times over."""
    prepare = preprocessor(mode, interpolation, side)
    channels = len(prepare.levels)
    draw = np.random.default_rng(0)
    with Place() as place:
        target = place.staged("image", "float32", (channels, side, side), len(sizes))
        stage = PictureStage(place.device, place.stream, (channels, side, side), prepare.levels)
        for turn in range(3):
            crops, expected = [], []
            for height, width in sizes:
                pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels if turn else (pixels > 127).astype(np.uint8) * np.uint8(255))
                unscaled = prepare.unscaled(picture)
                assert isinstance(unscaled, Unscaled)
                crops.append(unscaled.crop)
                expected.append(prepare(picture).tensor)
            stage.place(crops, [target.address + row * target.row_bytes for row in range(len(sizes))])
            target.download(len(sizes))
            place.stream.synchronize()
            np.testing.assert_array_equal(target.host.view(np.uint32), np.stack(expected).view(np.uint32))
        stage.close()


def check_selection(classes: int, regions: int, batch: int = 3) -> None:
    """Ranking as the host's, ties and all; and no image leaves that the host would refine."""
    draw = np.random.default_rng(classes + regions)
    count = (regions + 1) // 2
    with Place() as place:
        logits, importance = (place.staged("x", "float32", shape, batch) for shape in ((classes,), (regions,)))
        threshold = place.staged("x", "float32", ())
        selected, remaining, report = (
            place.staged("x", "int64", (size,), batch) for size in (count, regions - count, 1 + count)
        )
        for temperature in (1.0, 0.6):
            for decimals in (8, 1, 0):  # the fewer, the more ties
                logits.host[:] = draw.normal(size=(batch, classes)) * 3
                importance.host[:] = draw.normal(size=(batch, regions)).round(decimals)
                given = logits.host.copy(), importance.host.copy()
                sure = confidence(given[0], temperature)
                for eta in (0.0, 1.0, float(sure[0]), float(np.nextafter(sure[0], np.float32(2)))):
                    eta = min(eta, 1.0)
                    threshold.host[0] = eta * (1.0 + 2 * confidence_margin(classes))
                    for tensor, rows in ((logits, batch), (importance, batch), (threshold, 1)):
                        tensor.upload(rows)
                    params = SelectParams(
                        batch, classes, regions, count, logits.address, importance.address, temperature,
                        *(tensor.address for tensor in (threshold, selected, remaining, report)), 0,
                    )  # fmt: skip
                    select(params, place.device.index, place.stream.handle)
                    for tensor in (selected, remaining, report):
                        tensor.download(batch)
                    place.stream.synchronize()
                    expected = select_regions(given[1], count)
                    np.testing.assert_array_equal(selected.host, expected[0])
                    np.testing.assert_array_equal(remaining.host, expected[1])
                    np.testing.assert_array_equal(report.host[:, 1:], expected[0])
                    assert (report.host[:, 0].astype(bool) | exits_early(sure, eta)).all()


def check_branch() -> None:
    """A graph whose copy runs or is left out as the kernel before it decides, launch by launch."""
    with Place() as place:
        assert not why_no_branches(place.device), why_no_branches(place.device)
        logits, importance = place.staged("x", "float32", (2,)), place.staged("x", "float32", (4,))
        threshold, report = place.staged("x", "float32", ()), place.staged("x", "int64", (3,))
        source, target = place.staged("x", "float32", (64,)), place.staged("x", "float32", (64,))
        chosen, others = place.staged("x", "int64", (2,)), place.staged("x", "int64", (2,))
        branches = Branches(place.device, place.stream)
        importance.host[:] = [1, 3, 2, 0]
        importance.upload(1)
        logits.host[:] = 0  # a confidence of one half
        logits.upload(1)

        def choose(condition: int) -> None:
            params = SelectParams(
                1, 2, 4, 2, logits.address, importance.address, 1.0, threshold.address, chosen.address, others.address,
                report.address, condition,
            )  # fmt: skip
            select(params, place.device.index, place.stream.handle)

        def record() -> None:
            condition = branches.condition()
            choose(condition)
            branches.run_if(condition, lambda side: side.copy(target.address, source.address, 256, "DeviceToDevice"))
            target.download(1)
            report.download(1)

        choose(0)  # once before the capture: its code is loaded at the first launch
        place.stream.synchronize()
        graph = place.stream.capture(record)
        for turn in range(6):
            goes_on = turn % 3 != 1
            source.host[:], target.host[:] = 10.0 + turn, -1.0
            threshold.host[0] = 0.75 if goes_on else 0.25
            for tensor in (source, target, threshold):
                tensor.upload(1)
            graph.launch(place.stream)
            place.stream.synchronize()
            assert report.host.tolist() == [[int(goes_on), 1, 2]]
            assert (target.host == (10.0 + turn if goes_on else -1.0)).all()
        graph.close()
        branches.close()


def check_clock() -> None:
    """Parts in order, that add up to the whole."""
    with Place() as place:
        tensor = place.staged("x", "float32", (1 << 16,), 4)
        clock = EventClock(place.device, place.stream)
        clock.on = True
        for _ in range(3):
            clock.start()
            for part in ("upload", "download", "upload"):
                (tensor.upload if part == "upload" else tensor.download)(4)
                clock.mark(part)
            place.stream.synchronize()
            times = clock.times()
            assert times is not None
            assert list(times.parts) == ["upload", "download"]
            assert min(times.parts.values()) >= 0.0
            # Each of four events is read to half a microsecond.
            assert abs(sum(times.parts.values()) - times.total) <= 0.02 * times.total + 2e-3
        clock.close()
