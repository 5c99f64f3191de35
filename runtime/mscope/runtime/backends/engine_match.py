"""Which engine of a bundle is for this GPU, library and plugin; what is said of one that is not."""

from __future__ import annotations

from pathlib import Path

from mscope.core.engine import EngineRecord, Flavour, load_engine_record
from mscope.core.errors import BundleError
from mscope.core.manifest import Variant
from mscope.runtime.backends import plugin_library
from mscope.runtime.backends.base import Kernel
from mscope.runtime.backends.tensorrt_library import FLAVOURS, load, plain_version
from mscope.runtime.device.driver import find_gpu


def engine_mismatch(flavour: Flavour, path: Path, variant: Variant, kernel: Kernel) -> str:
    """Why the engine cannot run here, in one line that names both sides and the rebuild; "" where it can.

    Args:
        flavour: of the backend.
        path: the engine file; its record lies beside it.
        variant: what the manifest says of it.
        kernel: "native" wants an engine with the plugin, "function" one without, "auto" takes either.

    Raises:
        BundleError: no record, or one of another file.
        BackendError: the flavour's package cannot be imported.
    """
    record = load_engine_record(path)
    if (record.flavour, record.precision) != (flavour, variant.precision):
        raise BundleError(
            f"{path}: its record says {record.flavour} {record.precision}, the manifest {flavour} {variant.precision}: "
            "build the bundle again"
        )
    has_plugin = record.plugin_sha256 is not None
    if kernel == "native" and not has_plugin:
        return f"{path.name} was made without the plugin, --kernel native asks for it: {rebuild(flavour, path)}"
    if kernel == "function" and has_plugin:
        return f"{path.name} was made with the plugin, --kernel function asks for one without: use --kernel auto"
    title, version = FLAVOURS[flavour].title, plain_version(load(flavour).__version__)
    gpu, missing = find_gpu()
    if gpu is None:
        return missing
    if plain_version(record.version) != version or gpu.compute_capability not in record.compute_capabilities:
        built_for = " or ".join(record.compute_capabilities) + (f" ({record.gpu_name})" if record.gpu_name else "")
        return (
            f"{path.name} was built with {title} {record.version} for {built_for}, "
            f"here are {title} {version} and {gpu}: {rebuild(flavour, path)}"
        )
    return _plugin_mismatch(flavour, path, record)


def rebuild(flavour: Flavour, path: Path) -> str:
    """The command that builds the bundle's engines again, on the machine that is to run them."""
    return f"run 'mscope-export build --from {path.parent} --target {FLAVOURS[flavour].target}'"


def _plugin_mismatch(flavour: Flavour, path: Path, record: EngineRecord) -> str:
    if record.plugin_sha256 is None:
        return ""
    if reason := plugin_library.why_missing():
        return f"{path.name} needs the plugin library: {reason}"
    here = plugin_library.sha256()
    if here == record.plugin_sha256:
        return ""
    version = f"version {record.plugin_version}, " if record.plugin_version else ""
    return (
        f"{path.name} was built with the plugin library of {version}sha256 {record.plugin_sha256[:12]}, "
        f"here is {plugin_library.path()} of sha256 {here[:12]}: {rebuild(flavour, path)}"
    )
