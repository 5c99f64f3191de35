"""A plugin's whole life on one case, over the kernels' host run: creation, build phase, engine, enqueue."""

from __future__ import annotations

from typing import Any

import numpy as np

import op_cases as cases
from mscope.core.contract import OP_CONV
from op_cases import Inputs
from trt_driver import OP_INPUTS, Driver, given

GUARD = 64


def outputs_for(op: str, inputs: Inputs, count: int | None = None) -> list[np.ndarray]:
    """NaN, to be overwritten."""
    shape = (inputs.case.batch, inputs.case.length, inputs.case.channels)
    count = (2 if op == OP_CONV else 1) if count is None else count
    return [cases.to_storage(np.full(shape, np.nan), inputs.dtype) for _ in range(count)]


def run(
    driver: Driver, op: str, arrays: list[Any], results: list[np.ndarray], space: str = "", **attributes: int
) -> None:
    """From creation to the result, through an engine."""
    inputs, outputs = [given(array) for array in arrays], [given(array) for array in results]
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
