"""Drives the TensorRT plugin on torch tensors: for tests/gpu, and on the host's run for a look at these functions."""

from __future__ import annotations

import torch
from torch import Tensor

import cuda_torch
import op_cases as cases
from op_cases import Case, Inputs
from trt_driver import OP_CONV, OP_INPUTS, OP_SCAN, Driver, Given


def given(tensor: Tensor) -> Given:
    tensor = tensor.contiguous()
    axes = (0, 1) if tensor.ndim == 3 else ()
    name = str(tensor.dtype).removeprefix("torch.")
    return Given(tuple(tensor.shape), name, tensor.data_ptr(), axes, tensor)


def results_for(op: str, case: Case, dtype: str) -> list[Tensor]:
    return [cuda_torch.output(case, dtype) for _ in range(2 if op == OP_CONV else 1)]


def expected_of(op: str, inputs: Inputs) -> list[cases.Expected]:
    if op == OP_CONV:
        return [cases.conv(inputs, ""), cases.conv(inputs, "_b")]
    return [cases.scan(inputs, False, True) if op == OP_SCAN else cases.bidirectional(inputs)]


def through_the_driver(driver: Driver, op: str, case: Case, dtype: str) -> None:
    inputs = Inputs(case, dtype)
    arrays = cuda_torch.tensors(inputs)
    tensors, results = [given(arrays[name]) for name in OP_INPUTS[op]], results_for(op, case, dtype)
    plugin = driver.create(op)
    needed = driver.build(plugin, tensors, [given(y) for y in results])
    plugin = driver.reload(op, plugin)
    scratch = cuda_torch.allocate(needed + 256)
    driver.run(plugin, tensors, [given(y) for y in results], workspace=scratch.data_ptr(), stream=cuda_torch.stream())
    if cuda_torch.DEVICE != "cpu":
        torch.cuda.synchronize()
    driver.destroy(plugin)
    assert bool((scratch[needed:] == 0xFF).all())
    for y, expected in zip(results, expected_of(op, inputs), strict=True):
        assert expected.worst(cuda_torch.download(y), dtype) < cuda_torch.tolerance(case)
