"""The TensorRT plugin on the device: driven without TensorRT (plugins/trt_driver.cpp), and in engines of the TensorRT
that is here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

import cuda_host
import cuda_torch
import op_cases as cases
import trt_library
from mscope.plugins import build, build_cuda, find, trt
from mscope.plugins.build_trt import build_trt
from mscope.plugins.trt_options import PluginBuild
from op_cases import CASES, ROUNDING, Case, Inputs
from trt_driver import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_INPUTS, OP_SCAN, Driver, all_given
from trt_torch import expected_of, given, result_for, through_the_driver

pytestmark = pytest.mark.gpu

OPS = (OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN)
DENSE = [case for case in CASES if not case.spare]


@pytest.fixture(scope="module")
def library(device: str) -> Iterator[str]:
    """Built for this device's architecture, or with PTX where it is none of ours."""
    try:
        build_cuda.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    name = "".join(map(str, torch.cuda.get_device_capability(device)))
    only = (name,) if name in build_cuda.ARCHITECTURES else ()
    path = build_trt(PluginBuild(only=only, output=trt_library.FOLDER.with_name("library-gpu")))
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv(find.PLUGIN_DIR, str(path.parent))
        yield str(path)


@pytest.fixture(scope="module")
def driver(library: str) -> Driver:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    driver = Driver(trt.library_path())
    driver.set_logger(11)
    return driver


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("op", OPS)
def test_case_table(driver: Driver, op: str, dtype: str) -> None:
    for case in DENSE:
        if not (dtype == "float16" and case.delta_scale > 1e3):  # beyond the largest float16
            through_the_driver(driver, op, case, dtype)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("batch, length", [(1, 50), (1, 197), (8, 125), (64, 197), (1, 5000)])
def test_sizes_of_vim_ti(driver: Driver, op: str, batch: int, length: int) -> None:
    through_the_driver(driver, op, Case(length, channels=384, batch=batch), "float16")


def test_a_cuda_graph(driver: Driver) -> None:
    """enqueue allocates nothing and waits for nothing."""
    case = Case(300, channels=64, batch=2)
    first, second = (Inputs(case, "float16", seed) for seed in (0, 1))
    static = cuda_torch.tensors(first)
    y = result_for(OP_BIDIRECTIONAL_SCAN, case, "float16")
    arrays = [static[name] for name in OP_INPUTS[OP_BIDIRECTIONAL_SCAN]]
    tensors, results = all_given(OP_BIDIRECTIONAL_SCAN, arrays, [y], given)
    plugin = driver.create(OP_BIDIRECTIONAL_SCAN)
    scratch = cuda_torch.allocate(driver.build(plugin, tensors, results))
    plugin = driver.reload(OP_BIDIRECTIONAL_SCAN, plugin)
    graph = torch.cuda.CUDAGraph()
    # Once before: a kernel's code is loaded at its first launch, which a capture need not allow.
    driver.run(plugin, tensors, results, workspace=scratch.data_ptr(), stream=cuda_torch.stream())
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        driver.run(plugin, tensors, results, workspace=scratch.data_ptr(), stream=cuda_torch.stream())
    for inputs in (second, first):
        for name, tensor in cuda_torch.tensors(inputs).items():
            static[name].copy_(tensor)
        y.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        expected = cases.bidirectional(inputs)
        assert expected.worst(cuda_torch.download(y), "float16") < cuda_torch.tolerance(case)
    driver.destroy(plugin)


class Engine:
    """One op built by a flavour of TensorRT on this device, and run on torch's tensors."""

    def __init__(self, flavour: str, op: str, dtype: str, case: Case) -> None:
        from onnx import helper

        import ort_graphs

        module: Any = trt.import_flavour(flavour)  # type: ignore[arg-type]
        trt.load(flavour)  # type: ignore[arg-type]
        self.module, self.log = module, module.Logger(module.Logger.WARNING)
        self.inputs = Inputs(case, dtype)
        values = ort_graphs.values_of(op, self.inputs)
        model = ort_graphs.model_of(op, values, dtype=dtype, constants=False)
        for entry in model.graph.input:
            dims = ort_graphs.symbolic_shape(entry.name, values)
            entry.CopyFrom(helper.make_tensor_value_info(entry.name, entry.type.tensor_type.elem_type, dims))
        builder = module.Builder(self.log)
        flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = module.OnnxParser(network, self.log)
        assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        kinds = [network.get_layer(i).type.name for i in range(network.num_layers)]
        assert kinds.count("PLUGIN_V3") == 1
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for name, value in values.items():
            if name in ort_graphs.BOTH_DIRECTIONS:
                profile.set_shape(name, (2, 1, value.shape[2]), value.shape, (2, 8 * 512, value.shape[2]))
            elif value.ndim == 3:
                profile.set_shape(name, (1, 1, value.shape[2]), value.shape, (8, 512, value.shape[2]))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, "the builder gave no engine; its log is above"
        self.runtime = module.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        assert self.engine is not None
        self.values, self.case, self.op = values, case, op

    def run(self) -> Tensor:
        """The op's output, float32, on a stream of its own."""
        context, side = self.engine.create_execution_context(), torch.cuda.Stream()
        tensors = {n: torch.from_numpy(v.copy()).to(cuda_torch.DEVICE) for n, v in self.values.items()}
        y = result_for(self.op, self.case, "float32")
        for i in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(i)
            if name in tensors:
                assert context.set_input_shape(name, tuple(tensors[name].shape))
            else:
                tensors[name] = y
            context.set_tensor_address(name, tensors[name].data_ptr())
        torch.cuda.synchronize()
        assert context.execute_async_v3(side.cuda_stream)
        side.synchronize()
        return y


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("flavour", trt.MODULES)
def test_engines(library: str, flavour: Any, op: str, dtype: str) -> None:
    """Parsed, built, read back and run by TensorRT itself."""
    for module in (trt.MODULES[flavour], "onnx"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    if flavour == "tensorrt-rtx":
        major, minor = torch.cuda.get_device_capability()
        if f"SM{major}{minor}" not in trt.import_flavour(flavour).ComputeCapability.__members__:
            pytest.skip(f"this TensorRT-RTX does not build for sm_{major}{minor}")
    case = Case(197, channels=64, batch=2)
    engine = Engine(flavour, op, dtype, case)
    stored = cuda_torch.download(engine.run().to(getattr(torch, dtype)))
    assert expected_of(op, engine.inputs).worst(stored, dtype) < cuda_torch.tolerance(case)
