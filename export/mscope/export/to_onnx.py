"""One stage of a network as an ONNX model: traced by torch.export, cleaned by the passes, its ops as functions."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import onnx
import torch

from mscope.core.contract import BATCH, OP_DOMAIN, OP_VERSION, OPSET, Graph, Stage, graph_for
from mscope.export import passes
from mscope.export.functions import attach_functions
from mscope.export.graphs import example_inputs, stage_module
from mscope.export.interface import check_interface
from mscope.export.passes.mixers import join_mixers
from mscope.export.translations import translation_table
from mscope.model.backbone import Backbone

# The version of the ONNX file format: the first with default values for a function's attributes. ONNX Runtime 1.17 and
# TensorRT 10 read it.
IR_VERSION = 9


def onnx_from_model(model: Backbone, stage: Stage) -> onnx.ModelProto:
    """The fp32 graph of a stage, with a dynamic batch, named as mscope.core.contract says.

    Args:
        model: the network; its float32 parameters become the initializers.
        stage: `coarse` or `fine` of a MambaScope, `full` of either architecture.

    Raises:
        MscopeError: the result is not what the contract says, which is a defect of the exporter.
    """
    graph = graph_for(model.config, stage)
    exported = passes.clean(_trace(model, graph))
    describe(exported, graph.stage)
    attach_functions(exported)
    exported = join_mixers(with_shapes(exported))
    attach_functions(exported)
    check_interface(exported, graph)
    onnx.checker.check_model(exported)
    return exported


def _trace(model: Backbone, graph: Graph) -> onnx.ModelProto:
    module, inputs = stage_module(model, graph.stage), example_inputs(graph)
    batch = torch.export.Dim(BATCH)
    with torch.no_grad(), quiet():
        program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False)
        # Its optimiser merges equal weights under one name; the passes keep names.
        return onnx_from_program(program, graph.input_names, graph.output_names, optimize=False)


def onnx_from_program(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], *, optimize: bool
) -> onnx.ModelProto:
    """What torch's exporter makes of a traced program, before any pass of ours; `optimize`: after its own."""
    converted = torch.onnx.export(
        program,
        dynamo=True,
        optimize=optimize,
        opset_version=OPSET,
        custom_translation_table=translation_table(),
        input_names=inputs,
        output_names=outputs,
        verbose=False,
    )
    assert converted is not None
    proto: onnx.ModelProto = converted.model_proto
    return proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's own remarks (deprecations, torchvision not installed) off the user's terminal."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def describe(model: onnx.ModelProto, name: str) -> None:
    """Says who made the graph, calls it `name`, and imports the standard operators and ours."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "mambascope-deploy", _own_version()
    model.graph.name = f"{OP_DOMAIN}_{name}"
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(OP_DOMAIN, OP_VERSION)])


def _own_version() -> str:
    try:
        return version("mambascope-deploy")
    except ModuleNotFoundError:
        return "0"


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Adds the shapes of all intermediate values; TensorRT wants those of the custom ops."""
    shaped: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return shaped
