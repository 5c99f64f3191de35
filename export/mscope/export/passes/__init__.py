"""Graph passes, one small file each: ModelProto in, the same one out, idempotent, counts before and after logged."""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnx

from mscope.export.passes.constants import fold_constants
from mscope.export.passes.dead import remove_dead
from mscope.export.passes.duplicates import merge_duplicates
from mscope.export.passes.identities import remove_identities
from mscope.export.passes.names import clean_names
from mscope.export.passes.reshapes import make_reshapes_static
from mscope.export.passes.rms_norm import fold_reciprocal

Pass = Callable[[onnx.ModelProto], onnx.ModelProto]

_log = logging.getLogger(__name__)

# Removing an identity can make a node foldable and the other way round, hence rounds; three settled every graph tried.
_SIMPLIFICATIONS: tuple[Pass, ...] = (
    remove_identities,
    # Before folding, so that a weight that two products read is stored once.
    merge_duplicates,
    fold_constants,
    make_reshapes_static,
    fold_reciprocal,
    remove_dead,
)
_MAX_ROUNDS = 8


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """All passes: simplifications until nothing changes any more, then names. Changes `model` in place."""
    for _ in range(_MAX_ROUNDS):
        before = model.graph.SerializeToString(deterministic=True)
        for simplification in _SIMPLIFICATIONS:
            model = run(simplification, model)
        if model.graph.SerializeToString(deterministic=True) == before:
            break
    return run(clean_names, model)


def run(graph_pass: Pass, model: onnx.ModelProto) -> onnx.ModelProto:
    """One pass, logged."""
    nodes, initializers = len(model.graph.node), len(model.graph.initializer)
    model = graph_pass(model)
    _log.debug(
        "%s: nodes %d -> %d, initializers %d -> %d",
        graph_pass.__name__, nodes, len(model.graph.node), initializers, len(model.graph.initializer),
    )  # fmt: skip
    return model
