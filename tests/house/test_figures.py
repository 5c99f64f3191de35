"""The tables of README and docs show what their result files hold, rounded to the decimals that they show."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def shown(value: float, digits: int = 1) -> str:
    """Rounded as people do, a half away from zero."""
    exact = Decimal(repr(round(value, 9)))
    return str(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP))


def percent(*shares: float, digits: int = 1) -> str:
    return ", ".join(shown(100 * share, digits) for share in shares)


def latency() -> list[str]:
    native, bodies = (result("latency-cpu-ti-b1-t2")["median_ms"][kernels] for kernels in ("native", "function"))
    stages = ("coarse", "fine", "full")
    assert bodies["break_even_exit_rate"] < 0
    return [
        f"| native | {' | '.join(f'{shown(native[stage])} ms' for stage in stages)} | "
        f"{shown(100 * native['break_even_exit_rate'], 0)} % |",
        "| function bodies, stock ONNX Runtime | "
        f"{' | '.join(f'{shown(bodies[stage])} ms' for stage in stages)} | always |",
    ]


def variants() -> list[str]:
    found = result("variants")
    size = {name: f"{shown(count / 1e6)} MB" for name, count in found["ti_bytes"].items()}
    ms, faster = found["ti_median_ms"], found["ti_times_faster_than_fp32"]

    def right(precision: str) -> str:
        return (
            percent(*(found["digits"][precision]["accuracy"][path] for path in ("coarse", "fine", "adaptive"))) + " %"
        )

    def slower(name: str) -> str:
        return " | ".join(f"{shown(1 / faster[f'{stage} {name}'])}x slower" for stage in ("coarse", "fine"))

    quick = " | ".join(f"{shown(faster[f'{stage} int8'], 2)}x faster" for stage in ("coarse", "fine"))
    return [
        f"| fp32 | {size['fp32']} | {shown(ms['coarse fp32'])} ms | {shown(ms['fine fp32'])} ms | {right('fp32')} |",
        f"| fp32, function bodies | the same | {slower('fp32 function')} | |",
        f"| fp16 (for GPUs; CPUs convert back) | {size['fp16']} | {slower('fp16')} | {right('fp16')} |",
        f"| bf16 | {size['bf16']} | not run by ONNX Runtime's CPU | | |",
        f"| int8 | {size['int8']} | {quick} | {right('int8')} |",
        f"| fp8 (for GPUs) | {size['fp8']} | reference kernels only | | {right('fp8')} |",
    ]


def digits() -> list[str]:
    found = result("digits_accuracy")
    ours, plain = found["mambascope"], found["vim"]
    full = ours["gmacs"]["full"]
    curve = {point["eta"]: point for point in ours["curve"]}

    def row(share: float, gmacs: float) -> str:
        return f"{percent(share, digits=2)} % | {shown(gmacs * 1e3, 2)} | {shown(100 * gmacs / full, 0)} %"

    def adaptive(eta: float) -> str:
        point = curve[eta]
        label = f"adaptive, eta {eta:g} ({shown(100 * point['exit_rate'], 0)} % leave early)"
        return f"| {label} | {row(point['accuracy'], point['gmacs'])} |"

    return [
        f"| plain ViM | {row(plain['plain'], full)} |",
        f"| coarse stage alone | {row(ours['coarse'], ours['gmacs']['coarse'])} |",
        adaptive(0.9),
        adaptive(0.95),
        f"| every picture refined | {row(ours['fine'], curve[1.0]['gmacs'])} |",
        *(
            f"| {a['size_min']:g} to {a['size_max']:g} | {percent(b['plain'])} % | {percent(a['coarse'])} % | "
            f"{percent(a['fine'])} % | {shown(100 * a['exit_rate'], 0)} % |"
            for a, b in zip(ours["by_size"], plain["by_size"], strict=True)
        ),
    ]


def quantised() -> list[str]:
    rows = []
    for threads, name in ((1, "one thread"), (2, "two threads")):
        found = result(f"int8-cpu-ti-b1-t{threads}")
        for stage in ("coarse", "fine"):
            ms = " | ".join(f"{shown(found['median_ms'][f'{stage} {kind}'])} ms" for kind in ("fp32", "int8"))
            rows.append(f"| {stage}, {name} | {ms} | {shown(found['fp32_over_int8'][stage], 2)} |")
    for row in result("int8_accuracy")["rows"]:
        cells = [percent(row["accuracy"][path], digits=2) for path in ("coarse", "fine", "adaptive")]
        cells += [percent(row["changed"]["adaptive"], row["exit_flips"], digits=2), percent(row["selected_agreement"])]
        error = " / ".join(shown(row["logits_error"][stage], 3) for stage in ("coarse", "fine"))
        rows.append(f"{' | '.join(cells).replace(', ', ' | ')} | {error} |")
    return rows


def predicted() -> list[str]:
    rows: dict[str, list[str]] = {}
    for row in result("roofline-cpu")["rows"]:
        label = f"{row['size']}, {row['resolution']} pixels, batch {row['batch']}"
        cell = f"{row['measured_ms']:.3g} ({row['best_ms']:.3g} to {row['worst_ms']:.3g})"
        rows.setdefault(label, []).append(cell)
    return [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()]


def kernels() -> list[str]:
    found = result("scan_cpu")["results"]

    def row(label: str, group: str, name: str, decimals: int) -> str:
        return f"| {label} | {' | '.join(f'{entry[group][name]:.{decimals}f}' for entry in found)} |"

    return [
        row("native, two threads, ms", "median_ms", "native", 1),
        row("over the MatMuls alone, two threads", "ratios", "native / matmuls", 2),
        row("PyTorch eager over native, two threads", "ratios", "eager / native", 0),
        row("PyTorch eager over native, one thread", "one_thread_ratios", "eager / native", 1),
        row("function body over native, two threads", "ratios", "function / native", 1),
        row("function body over native, one thread", "one_thread_ratios", "function / native", 1),
        row("one thread over two", "ratios", "one thread / two", 2),
    ]


@pytest.mark.parametrize(
    ("document", "rows"),
    [
        ("README.md", latency),
        ("README.md", variants),
        ("docs/training.md", digits),
        ("docs/quantisation.md", quantised),
        ("docs/prediction.md", predicted),
        ("docs/kernels.md", kernels),
    ],
)
def test_tables_show_the_result_files(document: str, rows: Any) -> None:
    text = (ROOT / document).read_text(encoding="utf-8").replace("**", "")
    expected = rows()
    assert expected
    assert [row for row in expected if row not in text] == []
