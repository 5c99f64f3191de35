"""RAPL counters: which ones count, wraps, rights."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mscope.runtime.profiling.rapl import Rapl, _Zone, _zones
from mscope.runtime.profiling.sensors import SensorDenied, SensorError

RANGE = 262_143_328_850


def zone(folder: Path, name: str, label: str, microjoules: int = 0) -> Path:
    path = folder / name
    path.mkdir()
    (path / "name").write_text(label + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return path


def test_parts_of_a_package_are_not_counted_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    assert [found.name for found in _zones(tmp_path)] == ["package-0", "dram-0", "package-1"]


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    counter = _Zone("package-0", path / "energy_uj", RANGE)
    assert counter.joules() == 0.0
    for microjoules, expected in ((RANGE, 1.0), (0, 1.000001), (4_000_000, 5.000001), (4_000_000, 5.000001)):
        (path / "energy_uj").write_text(str(microjoules))
        assert counter.joules() == pytest.approx(expected, abs=1e-9)


def test_a_trace(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    sensor = Rapl(tmp_path, period_s=0.005)
    sensor.start()
    (path / "energy_uj").write_text("8000000")
    trace = sensor.stop()
    assert trace.kind == "joules"
    assert trace.total == ("package-0",)
    assert trace.readings[0].rails == {"package-0": 0.0}
    assert trace.readings[-1].rails == {"package-0": 3.0}
    assert trace.lost is None


def test_a_counter_that_goes_away(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0")
    sensor = Rapl(tmp_path, period_s=60.0)
    sensor.start()
    (path / "energy_uj").unlink()
    trace = sensor.stop()
    assert trace.lost is not None
    assert "cannot be read" in trace.lost


def test_no_counters(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SensorError, match="no RAPL counters"):
            Rapl(folder).start()


def test_rights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    real = Path.read_text

    # Root, who runs the tests in CI, may read everything: so the refusal is made up.
    def refused(self: Path, *args: object, **kwargs: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(SensorDenied, match="root"):
        Rapl(tmp_path).start()
