"""Layer tables as the pair of JSON files that NVIDIA's engine explorer (trex) reads: layers, and their times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mscope.core.files import write_text_atomically
from mscope.runtime.outputs import writable_folder
from mscope.runtime.profiling.schema import LayerTable


def write_layer_files(tables: tuple[LayerTable, ...], folder: Path) -> list[Path]:
    """Writes STAGE.graph.json and STAGE.profile.json for each table into `folder`; returns what was written.

    Raises:
        InputError: the folder cannot be made or written. OSError: the disk is full.
    """
    writable_folder(folder)
    written = []
    for table in tables:
        for kind, content in (("graph", graph_json(table)), ("profile", profile_json(table))):
            path = folder / f"{table.stage}.{kind}.json"
            write_text_atomically(path, json.dumps(content, indent=1) + "\n")
            written.append(path)
    return written


def graph_json(table: LayerTable) -> dict[str, Any]:
    """What `trtexec --exportLayerInfo` writes: the layers by name. Tensors between them are not known here."""
    layers = [
        {"Name": name, "LayerType": row.op, "Inputs": [], "Outputs": [], "Metadata": f"{row.block} {row.kind}"}
        for name, row in zip(_names(table), table.rows, strict=True)
    ]
    return {"Layers": layers, "Bindings": ["image", "logits"]}


def profile_json(table: LayerTable) -> list[dict[str, Any]]:
    """What `trtexec --exportProfile` writes: the number of runs, then milliseconds and per cent of each layer."""
    total = sum(row.mean_ms for row in table.rows) or 1.0
    rows = [
        {
            "name": name,
            "timeMs": round(row.mean_ms * table.runs, 6),
            "averageMs": round(row.mean_ms, 6),
            "medianMs": round(row.median_ms, 6),
            "percentage": round(row.mean_ms / total * 100, 4),
        }
        for name, row in zip(_names(table), table.rows, strict=True)
    ]
    return [{"count": table.runs}, *rows]


def _names(table: LayerTable) -> list[str]:
    """Unique names: the two files are joined by them."""
    seen: dict[str, int] = {}
    names = []
    for row in table.rows:
        seen[row.name] = seen.get(row.name, 0) + 1
        names.append(row.name if seen[row.name] == 1 else f"{row.name} #{seen[row.name]}")
    return names
