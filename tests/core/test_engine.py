"""The sidecar of an engine file."""

import json
from pathlib import Path

import pytest

from mscope.core.engine import EngineRecord, load_engine_record, sidecar_of
from mscope.core.errors import BundleError

RECORD = EngineRecord(
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    compute_capabilities=("sm_87",),
    stage="coarse",
    precision="fp16",
    graph_sha256="0" * 64,
    plugin_sha256="1" * 64,
    batch=(1, 1, 8),
)


def test_round_trip(tmp_path: Path) -> None:
    engine = tmp_path / "coarse.fp16.sm_87.engine"
    assert sidecar_of(engine).name == "coarse.fp16.sm_87.engine.json"
    sidecar_of(engine).write_text(RECORD.model_dump_json())
    assert load_engine_record(engine) == RECORD
    fixed = RECORD.model_copy(update={"batch": (4, 4, 4)})
    sidecar_of(engine).write_text(fixed.model_dump_json())
    assert load_engine_record(engine) == fixed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compute_capabilities", ["8.7"]),
        ("compute_capabilities", []),
        ("batch", [2, 1, 8]),
        ("batch", [0, 1, 8]),
        ("batch", [1, 9, 8]),
        ("layers", -1),
        ("launches", -1),
        ("launches_per_block", -0.5),
        ("version", "1" * 65),
        ("gpu_name", "H" * 257),
        ("precision", "fp12"),
        ("graph_sha256", "zz"),
        ("launches_per_block", float("inf")),
        ("surprise", 1),
        ("gpu_name", "H200\x1b[2J"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, field: str, value: object) -> None:
    engine = tmp_path / "x.engine"
    sidecar_of(engine).write_text(json.dumps(json.loads(RECORD.model_dump_json()) | {field: value}))
    with pytest.raises(BundleError, match=field):
        load_engine_record(engine)


def test_missing_huge_and_foreign_records(tmp_path: Path) -> None:
    engine = tmp_path / "x.engine"
    with pytest.raises(BundleError, match="not loaded without its record"):
        load_engine_record(engine)
    sidecar_of(engine).write_bytes(b"\x00\xff")
    with pytest.raises(BundleError, match="content"):
        load_engine_record(engine)
    sidecar_of(engine).write_bytes(b" " * (2 << 20))
    with pytest.raises(BundleError, match="larger than"):
        load_engine_record(engine)
