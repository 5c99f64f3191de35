"""Drives the TensorRT plugin on torch tensors: for tests/gpu, and on the host's run for a look at these functions."""

from __future__ import annotations

import torch
from torch import Tensor

import cuda_torch
import op_cases as cases
from op_cases import Case, Inputs
from trt_driver import OP_CONV, OP_INPUTS, OP_SCAN, Driver, Given, all_given, dynamic_axes


def given(tensor: Tensor, tokens: tuple[int, ...] | None = None) -> Given:
    tensor = tensor.contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    return Given(tuple(tensor.shape), name, tensor.data_ptr(), *dynamic_axes(tuple(tensor.shape), tokens), tensor)


def result_for(op: str, case: Case, dtype: str) -> Tensor:
    y = cuda_torch.output(case, dtype)
    return torch.stack([y, y]).flatten(1, 2) if op == OP_CONV else y


def expected_of(op: str, inputs: Inputs) -> cases.Expected:
    if op == OP_CONV:
        return cases.conv(inputs)
    return cases.scan(inputs, False, True) if op == OP_SCAN else cases.bidirectional(inputs)


def through_the_driver(driver: Driver, op: str, case: Case, dtype: str) -> None:
    inputs = Inputs(case, dtype)
    arrays = cuda_torch.tensors(inputs)
    y = result_for(op, case, dtype)
    tensors, results = all_given(op, [arrays[name] for name in OP_INPUTS[op]], [y], given)
    plugin = driver.create(op)
    needed = driver.build(plugin, tensors, results)
    plugin = driver.reload(op, plugin)
    scratch = cuda_torch.allocate(needed + 256)
    driver.run(plugin, tensors, results, workspace=scratch.data_ptr(), stream=cuda_torch.stream())
    if cuda_torch.DEVICE != "cpu":
        torch.cuda.synchronize()
    driver.destroy(plugin)
    assert bool((scratch[needed:] == 0xFF).all())
    assert expected_of(op, inputs).worst(cuda_torch.download(y), dtype) < cuda_torch.tolerance(case)
