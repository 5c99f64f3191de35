"""Adds engines to a bundle: one for each stage, from its ONNX file of a precision, with the record beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mscope.core.bundle import sha256_of
from mscope.core.contract import Stage
from mscope.core.engine import EngineRecord, sidecar_of
from mscope.core.errors import BackendError, InputError
from mscope.core.files import write_text_atomically
from mscope.core.manifest import Manifest, Precision, Variant
from mscope.export.engine import cache
from mscope.export.engine.device import Gpu, gpu_here
from mscope.export.engine.flavour import ON_THE_DEVICE, Library, load
from mscope.export.engine.layers import launches, launches_per_block
from mscope.export.engine.network import input_shapes
from mscope.export.engine.process import build_in_process
from mscope.export.engine.proof import EngineProof, prove_engine
from mscope.export.engine.request import BuildResult, EngineRequest
from mscope.export.extend import Derive, Progress, new_file
from mscope.export.passes.mixers import load_split
from mscope.plugins.trt import PLUGIN_VERSION

# Raised when the worker builds otherwise, so that engines in the cache from before are not taken.
_RECIPE = 3


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    Attributes:
        library: which flavour.
        gpus: compute capabilities to build for; () the GPU of this machine.
        batch: smallest, best and largest batch.
        plugin: the plugin library; None compiles the function bodies in the graph instead.
        cached: take engines from the cache, and put them there.
    """

    library: Library
    gpus: tuple[str, ...] = ()
    batch: tuple[int, int, int] = (1, 1, 8)
    plugin: Path | None = None
    cached: bool = True


def engine_name(stage: Stage, precision: Precision, flavour: str) -> str:
    """`coarse.fp16.tensorrt-rtx.engine`."""
    return f"{stage}.{precision}.{flavour}.engine"


def engines_of(options: EngineOptions, precision: Precision, proofs: dict[str, EngineProof] | None = None) -> Derive:
    """A derivation that builds the engines of one precision from the ONNX files of that precision.

    Args:
        options: how.
        precision: which ONNX files.
        proofs: gets what is proved of each engine, by its file name.
    """

    def derive(folder: Path, manifest: Manifest, progress: Progress | None) -> Mapping[Stage, Variant]:
        gpu = target_gpu(options)
        version = str(load(options.library).__version__)
        added: dict[Stage, Variant] = {}
        for stage in manifest.stages:
            graph = folder / onnx_file(manifest, stage, precision)
            engine = new_file(folder, engine_name(stage, precision, options.library.flavour))
            record, proof = _build(options, manifest, stage, precision, graph, engine, gpu, version, progress)
            new_file(folder, sidecar_of(engine).name)
            write_text_atomically(sidecar_of(engine), record.model_dump_json(indent=1) + "\n")
            added[stage] = Variant(file=engine.name, backend=options.library.flavour, precision=precision)
            if proofs is not None:
                proofs[engine.name] = proof
        return added

    return derive


def target_gpu(options: EngineOptions) -> Gpu | None:
    """The GPU here, when the engines are for it; None when others are named.

    Raises:
        BackendError: no GPU here and none named. InputError: TensorRT itself, asked to build for another GPU.
    """
    here = gpu_here()
    library = options.library
    if library.flavour == "tensorrt":
        check_here(options.gpus, here)
    if options.gpus and library.flavour != "tensorrt":
        return None
    if here is None:
        raise BackendError(
            f"--target {library.target}: no NVIDIA GPU or driver here"
            + ("; name the GPU to build for with --gpu sm_XX" if library.flavour == "tensorrt-rtx" else "")
        )
    return here


def check_here(gpus: tuple[str, ...], here: Gpu | None) -> None:
    """Raises InputError where TensorRT itself is to build for another GPU than the one here."""
    if gpus not in ((), (here.sm if here else "",)):
        raise InputError(f"--gpu {','.join(gpus)}: TensorRT builds for the GPU it runs on only; {ON_THE_DEVICE}")


def onnx_file(manifest: Manifest, stage: Stage, precision: Precision) -> str:
    """The ONNX file of a stage at a precision, which the bundle has (`VariantSteps.run`)."""
    variants = manifest.stages[stage].variants
    return next(v.file for v in variants if (v.backend, v.precision) == ("onnx", precision))


def _build(
    options: EngineOptions,
    manifest: Manifest,
    stage: Stage,
    precision: Precision,
    graph: Path,
    engine: Path,
    gpu: Gpu | None,
    version: str,
    progress: Progress | None,
) -> tuple[EngineRecord, EngineProof]:
    flavour, plugin = options.library.flavour, options.plugin
    plugin_sha256 = None if plugin is None else sha256_of(plugin)
    capabilities = options.gpus if gpu is None else (gpu.sm,)
    gpu_name = "" if gpu is None else gpu.name
    graph_sha256 = sha256_of(graph)
    identity = {"flavour": flavour, "version": version, "graph": graph_sha256, "plugin": plugin_sha256}
    key = cache.cache_key(
        **identity, recipe=_RECIPE, gpus=capabilities, gpu=gpu_name, batch=options.batch, precision=precision
    )
    request = EngineRequest(
        flavour=flavour,
        stage=stage,
        precision=precision,
        onnx=str(graph),
        engine=str(engine),
        plugin=None if plugin is None else str(plugin),
        gpus=options.gpus if gpu is None else (),
        shapes=input_shapes(manifest.config, stage),
        batch=options.batch,
        timing_cache=_timing_cache(flavour, version, gpu),
    )
    result = cache.take(key, engine) if options.cached else None
    fresh = result is None
    if result is None:
        result = build_in_process(request, progress)
    proof = prove_engine(load_split(graph), request, result)
    if fresh and options.cached:
        cache.keep(key, engine, result)
    return _record(request, result, capabilities, gpu_name, graph_sha256, plugin_sha256), proof


def _record(
    request: EngineRequest,
    result: BuildResult,
    capabilities: tuple[str, ...],
    gpu_name: str,
    graph_sha256: str,
    plugin_sha256: str | None,
) -> EngineRecord:
    return EngineRecord(
        flavour=request.flavour,
        version=result.version,
        compute_capabilities=capabilities,
        gpu_name=gpu_name,
        stage=request.stage,
        precision=request.precision,
        graph_sha256=graph_sha256,
        plugin_sha256=plugin_sha256,
        plugin_version=None if plugin_sha256 is None else PLUGIN_VERSION,
        batch=request.batch,
        layers=len(result.layers) or None,
        launches=len(launches(result.layers)) or None,
        launches_per_block=launches_per_block(result.layers),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _timing_cache(flavour: str, version: str, gpu: Gpu | None) -> str | None:
    """TensorRT's timing cache for this GPU and version; TensorRT-RTX times nothing when it builds."""
    if flavour != "tensorrt" or gpu is None:
        return None
    return str(cache.cache_folder() / f"timing-{version}-{gpu.sm}.cache")
