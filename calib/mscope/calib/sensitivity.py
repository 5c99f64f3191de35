"""Which layers suffer: one group of one stage quantised at a time, the rest fp32, on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from mscope.calib.calibrate import Batches
from mscope.calib.chain import Models, opened
from mscope.calib.gate import shared_regions
from mscope.calib.quantize import EightBit, quantized
from mscope.calib.record import Blame
from mscope.calib.sites import find_sites, groups_of
from mscope.core.cascade import select_regions
from mscope.core.config import ModelConfig
from mscope.core.contract import Stage
from mscope.core.errors import InputError
from mscope.runtime.backends.base import Arrays

Floats = npt.NDArray[np.float32]
Limits = Mapping[Stage, Mapping[str, float]]


def sensitivity(
    config: ModelConfig,
    models: Models,
    precision: EightBit,
    limits: Limits,
    batches: Batches,
    progress: Callable[[str], None] | None = None,
) -> tuple[Blame, ...]:
    """What each group alone does to the logits of its stage; the worst first.

    A fine stage gets what the fp32 coarse stage hands on, so that each figure is of one group only.

    Args:
        config: the network's configuration.
        models: its graphs in fp32, smoothed where the ranges are.
        precision: of the group under test.
        limits: calibrated ranges by stage and activation.
        batches: pictures, the same at every call; a few dozen do.
        progress: called with a few words before each group.

    Raises:
        InputError: no pictures.
    """
    feeds = _reference(config, models, batches)
    blames = []
    for stage, model in models.items():
        groups = groups_of(find_sites(model))
        for turn, group in enumerate(groups, start=1):
            if progress is not None:
                progress(f"sensitivity of {stage}: {group} ({turn} of {len(groups)})")
            others = [other for other in groups if other != group]
            alone = quantized(model, precision, limits[stage], others)
            with opened(config, {stage: alone}) as chain:
                outputs = [chain.run_stage(stage, inputs) for inputs, _ in feeds[stage]]
            blames.append(_blame(stage, group, outputs, [wanted for _, wanted in feeds[stage]]))
    return tuple(sorted(blames, key=lambda blame: -blame.error))


def _reference(config: ModelConfig, models: Models, batches: Batches) -> dict[Stage, list[tuple[Arrays, Arrays]]]:
    """What each stage gets and gives in fp32, batch by batch."""
    rows: dict[Stage, list[tuple[Arrays, Arrays]]] = {stage: [] for stage in models}
    names = ("features", "embeddings", "selected", "remaining")
    with opened(config, models) as chain:
        for image in batches():
            outputs = chain.run(image)
            for stage, arrays in outputs.items():
                inputs: Arrays = {"image": image}
                if stage == "fine":
                    inputs |= {name: outputs["coarse"][name] for name in names}
                rows[stage].append((inputs, arrays))
    if not all(rows.values()):
        raise InputError("sensitivity needs pictures, none could be read: give --calib-data a folder of pictures")
    return rows


def _blame(stage: Stage, group: str, got: list[Arrays], wanted: list[Arrays]) -> Blame:
    logits, exact = (np.concatenate([arrays["logits"] for arrays in side]) for side in (got, wanted))
    spread = float(np.std(exact))
    error = float(np.sqrt(np.mean((logits - exact) ** 2)))
    agreement = None
    if stage == "coarse":
        chosen = np.concatenate([arrays["selected"] for arrays in wanted])
        importance = np.concatenate([arrays["importance"] for arrays in got])
        agreement = shared_regions(select_regions(importance, chosen.shape[1])[0], chosen)
    return Blame(
        stage=stage,
        group=group,
        # Logits that are all alike have no spread to measure against.
        error=error / spread if spread > 0 else error,
        changed=float((logits.argmax(axis=1) != exact.argmax(axis=1)).mean()),
        selected_agreement=agreement,
    )
