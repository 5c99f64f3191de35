"""A plugin's whole life on one case, over the kernels' host run: creation, build phase, engine, enqueue."""

from __future__ import annotations

from typing import Any

import numpy as np

import op_cases as cases
from mscope.core.contract import OP_CONV
from op_cases import Inputs
from trt_driver import OP_INPUTS, Driver, all_given

GUARD = 64


def outputs_for(op: str, inputs: Inputs, directions: int = 2) -> list[np.ndarray]:
    """NaN, to be overwritten."""
    rows = (inputs.case.batch, inputs.case.length)
    shape = (directions, rows[0] * rows[1]) if op == OP_CONV else rows
    return [cases.to_storage(np.full((*shape, inputs.case.channels), np.nan), inputs.dtype)]


def run(
    driver: Driver, op: str, arrays: list[Any], results: list[np.ndarray], space: str = "", **attributes: int
) -> None:
    """From creation to the result, through an engine."""
    inputs, outputs = all_given(op, arrays, results)
    plugin = driver.create(op, attributes, space=space)
    bytes_needed = driver.build(plugin, inputs, outputs)
    plugin = driver.reload(op, plugin)
    workspace = np.full(bytes_needed // 4 + GUARD, np.nan, np.float32)
    workspace[bytes_needed // 4 :] = 7.0
    address = workspace.ctypes.data if bytes_needed else 0
    driver.run(plugin, inputs, outputs, workspace=address, stream=driver.exported("host_stream")())
    driver.destroy(plugin)
    assert np.all(workspace[bytes_needed // 4 :] == 7.0)
    assert [line for line in driver.messages().splitlines() if not line.startswith("[4]")] == []


def stored(inputs: Inputs, op: str, without: tuple[str, ...] = ()) -> list[np.ndarray]:
    return [inputs.stored[name] for name in OP_INPUTS[op] if name not in without]
