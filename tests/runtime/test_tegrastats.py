"""Lines of tegrastats in the forms of JetPack 4 to 7. The forms are those that users report in public issues and
documents for the module and release named; the values are changed."""

from __future__ import annotations

import sys
import time

import pytest

from mscope.runtime.profiling.sensors import SensorError
from mscope.runtime.profiling.tegrastats import Tegrastats
from mscope.runtime.profiling.tegrastats_line import MAX_CHARACTERS, parse_tegrastats, total_of

LINES = {
    # JetPack 4.6, Nano: no units, the average behind the slash, IRAM in kB, "off" cores absent.
    "nano-jp4": (
        "RAM 1900/3964MB (lfb 2x2MB) SWAP 190/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,3%@1224,"
        "6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 3%@76 APE 25 PLL@37C CPU@40.5C PMIC@50C GPU@40C AO@45C thermal@40C "
        "POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
    ),
    # JetPack 4.6, TX2: two-part cluster words, seven rails.
    "tx2-jp4": (
        "RAM 3200/7859MB (lfb 5x4MB) SWAP 1600/12122MB (cached 181MB) CPU [44%@1421,off,off,17%@1420] EMC_FREQ 1%@1866 "
        "GR3D_FREQ 0%@114 APE 150 MTS fg 1% bg 1% PLL@42.5C MCPU@42.5C PMIC@50C Tboard@38C GPU@39.5C BCPU@42.5C "
        "thermal@41.3C Tdiode@39.25C VDD_SYS_GPU 182/182 VDD_SYS_SOC 730/730 VDD_4V0_WIFI 0/0 VDD_IN 5300/5290 "
        "VDD_SYS_CPU 1917/1917 VDD_SYS_DDR 1241/1241"
    ),
    # JetPack 4.6, AGX Xavier: rails without a prefix, no rail for the input.
    "xavier-jp4": (
        "RAM 1700/31919MB (lfb 7000x4MB) SWAP 0/15959MB (cached 0MB) CPU [1%@1190,0%@1190] EMC_FREQ 0%@1600 "
        "GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@34C GPU@34.5C Tboard@35C Tdiode@36.75C AUX@34C CPU@35.5C "
        "thermal@34.45C PMIC@50C GPU 300/310 CPU 311/315 SOC 932/930 CV 1/0 VDDRQ 155/155 SYS5V 2019/2010"
    ),
    # JetPack 5.1, Xavier NX: date first, mW on both sides, clocks in brackets.
    "xavier-nx-jp5": (
        "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397,17%@1192,off,off,"
        "23%@1190,10%@1190] EMC_FREQ 2%@204 GR3D_FREQ 8%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C "
        "AO@45C GPU@45.5C PMIC@50C VDD_IN 2760mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 655mW/711mW"
    ),
    # JetPack 5.1, AGX Orin: upper-case sensors, parts that are off at -256 C, GR3D2, pads that are not connected.
    "agx-orin-jp5": (
        "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,2%@2201] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 12%@306 GR3D2_FREQ 7%@408 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C "
        "SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C SOC1@40.468C CV2@-256C "
        "VDD_GPU_SOC 2400mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4030mW NC 0mW/0mW "
        "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
    ),
    # JetPack 6, AGX Orin: both clusters in one bracket, engines off or with load and clock, three rails.
    "agx-orin-jp6": (
        "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112] "
        "EMC_FREQ 3%@2133 GR3D_FREQ 20%@[400,410] NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off "
        "NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C "
        "VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW"
    ),
    # JetPack 6, AGX Orin while DLA runs: a clock without a load.
    "agx-orin-dla-jp6": (
        "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) CPU [90%@2201,100%@2201] EMC_FREQ 1%@2133 "
        "GR3D_FREQ 14%@[407,407] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C tj@77.281C "
        "VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
    ),
    # JetPack 6, Orin Nano without root: no memory clock, no GPU clock.
    "orin-nano-jp6": (
        "01-27-2026 11:15:02 RAM 2250/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) CPU [66%@1728,16%@1728,18%@1728,"
        "9%@1728,9%@729,16%@729] GR3D_FREQ 41% cpu@45.968C soc2@45.156C soc0@45.468C gpu@45.437C tj@45.968C "
        "soc1@44.281C VDD_IN 4046mW/4236mW VDD_CPU_GPU_CV 720mW/786mW VDD_SOC 1201mW/1261mW"
    ),
    # JetPack 7, Thor: three GPU clusters and no load; a rail below zero; the board's input.
    "thor-jp7": (
        "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,0%@972,8%@1566] EMC_FREQ 0%@2750 "
        "GR3D_FREQ @[314,314,320] NVENC0_FREQ @314 NVJPG0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 "
        "cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU -392mW/-392mW "
        "VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
    ),
    # JetPack 7, Thor: no engines at all.
    "thor-idle-jp7": (
        "01-20-2026 22:46:22 RAM 17842/125772MB (lfb 79x4MB) CPU [0%@972,0%@972] cpu@30.468C tj@31.218C soc012@30.218C "
        "VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 5535mW/5535mW VIN_SYS_5V0 5040mW/5040mW VIN 16802mW/16802mW"
    ),
}
RAILS = {
    "nano-jp4": {"POM_5V_IN": 1750, "POM_5V_GPU": 0, "POM_5V_CPU": 366},
    "tx2-jp4": {
        "VDD_SYS_GPU": 182, "VDD_SYS_SOC": 730, "VDD_4V0_WIFI": 0, "VDD_IN": 5300, "VDD_SYS_CPU": 1917,
        "VDD_SYS_DDR": 1241,
    },
    "xavier-jp4": {"GPU": 300, "CPU": 311, "SOC": 932, "CV": 1, "VDDRQ": 155, "SYS5V": 2019},
    "xavier-nx-jp5": {"VDD_IN": 2760, "VDD_CPU_GPU_CV": 650, "VDD_SOC": 655},
    "agx-orin-jp5": {"VDD_GPU_SOC": 2400, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4032, "VDDQ_VDD2_1V8AO": 301},
    "agx-orin-jp6": {"VDD_GPU_SOC": 2412, "VDD_CPU_CV": 1607, "VIN_SYS_5V0": 4707},
    "agx-orin-dla-jp6": {"VDD_GPU_SOC": 3150, "VDD_CPU_CV": 14312, "VIN_SYS_5V0": 4968, "VDDQ_VDD2_1V8AO": 1091},
    "orin-nano-jp6": {"VDD_IN": 4046, "VDD_CPU_GPU_CV": 720, "VDD_SOC": 1201},
    "thor-jp7": {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780},
    "thor-idle-jp7": {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 5535, "VIN_SYS_5V0": 5040, "VIN": 16802},
}  # fmt: skip
TOTALS_MW = {
    "nano-jp4": 1750, "tx2-jp4": 5300, "xavier-jp4": 300 + 311 + 932 + 1 + 155 + 2019, "xavier-nx-jp5": 2760,
    "agx-orin-jp5": 2400 + 400 + 4032, "agx-orin-jp6": 2412 + 1607 + 4707, "agx-orin-dla-jp6": 3150 + 14312 + 4968,
    "orin-nano-jp6": 4046, "thor-jp7": 19780, "thor-idle-jp7": 16802,
}  # fmt: skip


@pytest.mark.parametrize("form", LINES)
def test_rails_and_the_total_of_every_form(form: str) -> None:
    line = parse_tegrastats(LINES[form])
    assert line is not None
    assert line.rails_mw == RAILS[form]
    total, words = total_of(line.rails_mw)
    assert sum(line.rails_mw[rail] for rail in total) == TOTALS_MW[form]
    assert all(rail in words for rail in total)


def test_loads_clocks_and_temperatures() -> None:
    def of(form: str):  # type: ignore[no-untyped-def]
        line = parse_tegrastats(LINES[form])
        assert line is not None
        return line

    assert of("nano-jp4").clocks_mhz == {"EMC": 1600, "GR3D": 76, "CPU": 1224}
    assert of("tx2-jp4").cores_on == 2
    assert of("xavier-nx-jp5").load_percent == {"EMC": 2, "GR3D": 8}
    assert of("xavier-nx-jp5").clocks_mhz["CPU"] == pytest.approx((1397 + 1192 + 1190 + 1190) / 4)
    assert of("agx-orin-jp5").clocks_mhz["GR3D2"] == 408
    assert of("agx-orin-jp5").load_percent["GR3D2"] == 7
    assert of("agx-orin-jp6").clocks_mhz["GR3D"] == 405
    assert of("orin-nano-jp6").load_percent == {"GR3D": 41}
    assert "GR3D" not in of("orin-nano-jp6").clocks_mhz
    assert of("thor-jp7").clocks_mhz["GR3D"] == 316
    assert "GR3D" not in of("thor-jp7").load_percent
    # Parts that are off are absent, not at -256 degrees.
    assert set(of("agx-orin-jp5").temperature_c) == {"CPU", "Tboard", "SOC2", "Tdiode", "SOC0", "tj", "SOC1"}
    assert of("thor-jp7").temperature_c["soc345"] == 37.406


@pytest.mark.parametrize(
    "text, rails",
    [
        ("RAM 1/2MB CPU [1%@2] VDD_IN 5000mW", {"VDD_IN": 5000}),  # without an average
        ("RAM 1/2MB CPU [1%@2] VDD_IN 5000mW/5000mW VDD_SOC N/A", {"VDD_IN": 5000}),
        ("RAM 1/2MB CPU [1%@2] VDD_IN -", {}),
        ("RAM 1/2MB CPU [1%@2] VDD_IN - VDD_SOC 12mW/13mW", {"VDD_SOC": 12}),
        ("CPU [off,off] VDD_GPU off VDD_SOC 7mW/7mW", {"VDD_SOC": 7}),
        ("CPU [1%@2] VDD_IN 5mW/5mW VDD_IN 6mW/6mW VDD_SOC 1mW/1mW", {"VDD_SOC": 1}),  # ambiguous
        ("CPU [1%@2] VDD_IN 5W/5W VDD_SOC 1uW/1uW", {}),  # other units
        ("CPU [1%@2] VDD_IN 5mW/5mW/5mW VDD_SOC 1e9mW", {}),
        ("CPU [1%@2] VDD_IN 5mW/", {}),
        ("CPU [1%@2] APE 174 VIC_FREQ 115 RAM 3/4MB", {}),
    ],
)
def test_missing_and_broken_rails_are_absent(text: str, rails: dict[str, float]) -> None:
    line = parse_tegrastats(text)
    assert line is not None
    assert line.rails_mw == rails


@pytest.mark.parametrize(
    "text",
    ["", "tegrastats: command not found", "Traceback (most recent call last)", "VDD_IN 5mW/5mW " * MAX_CHARACTERS],
)
def test_what_is_no_line(text: str) -> None:
    assert parse_tegrastats(text) is None


def test_a_total_that_is_not_known_says_so() -> None:
    rails, words = total_of(["VDD_A", "VDD_B"])
    assert rails == ("VDD_A", "VDD_B")
    assert "every rail" in words


def script(body: str) -> list[str]:
    return [sys.executable, "-u", "-c", body]


def test_the_process_is_read_until_it_is_stopped() -> None:
    line = LINES["orin-nano-jp6"]
    sensor = Tegrastats(script(f"import time\nwhile True: print({line!r}); time.sleep(0.01)"), period_s=0.01)
    sensor.start()
    time.sleep(0.2)
    trace = sensor.stop()
    assert trace.lost is None
    assert len(trace.readings) >= 5
    assert (trace.seconds[1:] >= trace.seconds[:-1]).all()
    seconds, watts = trace.values(trace.total)
    assert len(seconds) == len(trace.readings)
    assert set(watts) == {4.046}
    assert trace.readings[0].temperature_c["tj"] == 45.968


def test_a_process_that_ends_is_reported() -> None:
    sensor = Tegrastats(script(f"print('warming up'); print({LINES['agx-orin-jp6']!r})"), period_s=0.01)
    sensor.start()
    deadline = time.monotonic() + 5
    while sensor._recorder.lost is None and time.monotonic() < deadline:
        time.sleep(0.01)
    trace = sensor.stop()
    assert trace.lost == "tegrastats ended by itself"
    assert trace.notes == ("1 lines of tegrastats had no power in them",)


@pytest.mark.parametrize("body", ["print('no power here')", "pass", "print('x' * 10_000_000, end='')"])
def test_a_process_without_power_is_no_sensor(body: str) -> None:
    with pytest.raises(SensorError, match="no power rail"):
        Tegrastats(script(body), period_s=0.01).start()


def test_no_tegrastats_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SensorError, match="not a Jetson"):
        Tegrastats().start()
