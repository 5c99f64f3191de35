"""An evaluation for people and programs: a table, strict JSON, CSV files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mscope.calib.evaluate import ClassRow, CurveRow, Evaluation, cascade_cost
from mscope.calib.intervals import Estimate, few_images_warning
from mscope.calib.study import Study
from mscope.core.cost import break_even_exit_rate, describe_break_even
from mscope.core.files import write_text_atomically
from mscope.core.geometry import describe_reduction, vim_name
from mscope.runtime.preprocess import pillow_version
from mscope.runtime.report import stdout_console

_WORST_CLASSES = 5


def to_json(study: Study, evaluation: Evaluation, warnings: Sequence[str]) -> dict[str, Any]:
    """Plain values: strict JSON, shares in [0, 1], GMACs, milliseconds."""
    first = study.bundles[0]
    content = asdict(evaluation)
    answers = {
        name: {key: value for key, value in answer.items() if key != "bins"}
        for name, answer in content["answers"].items()
    }
    return {
        "bundle": str(first.folder.absolute()),
        "name": first.manifest.name,
        "weights": first.manifest.weights.model_dump(mode="json") | {"trained": first.manifest.weights.trained},
        "backend": first.backend,
        "kernel": first.kernel,
        "precision": first.precision,
        "pillow": pillow_version(),
        "data": {
            "name": study.dataset.name,
            "fingerprint": study.dataset.fingerprint,
            "images": study.images,
            "skipped": [asdict(one) for one in first.outputs.skipped],
            "notes": list(study.dataset.notes),
        },
        "level": evaluation.level,
        "eta": evaluation.eta,
        "temperature": evaluation.temperature.model_dump(),
        "exit_rate": content["exit_rate"],
        "break_even_exit_rate": break_even(study, evaluation),
        "answers": answers,
        "differences": content["differences"],
        "latency_ms": content["latency"],
        "curve_points": evaluation.curve_points,
        "curve": content["curve"],
        "classes": content["classes"],
        "reliability": {name: answer["bins"] for name, answer in content["answers"].items()},
        "warnings": list(warnings),
    }


def answer_names(study: Study) -> dict[str, str]:
    """What tables and plots call the answers; a reduced ViM by its name."""
    vim = vim_name(study.bundles[0].manifest.config)
    return {"coarse": "coarse stage alone", "fine": "every image refined", "adaptive": "adaptive", "plain": vim}


def break_even(study: Study, evaluation: Evaluation) -> dict[str, float | None] | None:
    """The early-exit rate above which the cascade costs less than plain ViM, by GMACs and, where measured, by time."""
    if evaluation.eta is None:
        return None
    cost = cascade_cost(study.bundles[0].manifest)
    latency, plain = evaluation.latency, evaluation.answers.get("plain")
    by_time = None
    if latency is not None and plain is not None and plain.latency_ms is not None:
        by_time = break_even_exit_rate(latency.coarse + latency.select, latency.fine, plain.latency_ms)
    return {"gmacs": break_even_exit_rate(cost.coarse, cost.fine, cost.full), "latency": by_time}


def warnings_about(study: Study, evaluation: Evaluation) -> tuple[str, ...]:
    """What to know before relying on the figures."""
    first = study.bundles[0]
    lines = [note for observed in study.bundles for note in observed.notes]
    if not first.manifest.weights.trained:
        lines.append(f"weights: {first.manifest.weights.describe()}")
    if first.manifest.config.reductions:
        config = first.manifest.config
        lines.append(f"{vim_name(config)}: its tokens are reduced, {describe_reduction(config)}")
    few = few_images_warning(study.images, evaluation.level)
    if few is not None:
        lines.append(few)
    if study.skipped:
        lines.append(f"{study.skipped} of {study.skipped + study.images} pictures could not be read and were left out")
    adaptive = evaluation.answers.get("adaptive")
    if adaptive is not None and adaptive.gmacs.value > first.manifest.baseline.gmacs:
        cost = cascade_cost(first.manifest)
        rate = break_even_exit_rate(cost.coarse, cost.fine, cost.full)
        lines.append(f"at eta {evaluation.eta:g} the cascade costs more than plain ViM: it {describe_break_even(rate)}")
    plain = evaluation.answers.get("plain")
    if adaptive is not None and plain is not None and adaptive.latency_ms is not None and plain.latency_ms is not None:
        by_time = (break_even(study, evaluation) or {}).get("latency")
        if adaptive.latency_ms > plain.latency_ms and by_time is not None:
            lines.append(
                f"at eta {evaluation.eta:g} the cascade takes longer than plain ViM here ({adaptive.latency_ms:.3g} "
                f"against {plain.latency_ms:.3g} ms at batch 1): by latency it {describe_break_even(by_time)}"
            )
    return tuple(lines)


def write_results(folder: Path, content: dict[str, Any], evaluation: Evaluation) -> list[Path]:
    """Writes eval.json, curve.csv (adaptive bundles), classes.csv and reliability.csv; each complete or not at all."""
    bins = [{"answers": name, **asdict(one)} for name, answer in evaluation.answers.items() for one in answer.bins]
    files = {
        "eval.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "classes.csv": _csv([field.name for field in fields(ClassRow)], map(asdict, evaluation.classes)),
        "reliability.csv": _csv(list(bins[0]), bins),
    }
    if evaluation.curve:
        files["curve.csv"] = _csv([field.name for field in fields(CurveRow)], map(asdict, evaluation.curve))
    for name, text in files.items():
        write_text_atomically(folder / name, text)
    return [folder / name for name in files]


def _csv(header: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def print_evaluation(study: Study, evaluation: Evaluation) -> None:
    """The evaluation on stdout, for people."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = stdout_console()
    first = study.bundles[0]
    console.print(
        escape(
            f"{first.manifest.name} on {study.images} pictures of {study.dataset.name}; "
            f"{first.backend} {first.precision}, {first.kernel} kernels; intervals {100 * evaluation.level:g} %"
        )
    )
    for note in study.dataset.notes:
        console.print(f"[dim]{escape(note)}[/]")
    timed = any(answer.latency_ms is not None for answer in evaluation.answers.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("top-1 %", "interval", "top-5 %", "ECE", "GMACs", *(("ms",) if timed else ())):
        table.add_column(name, justify="right", no_wrap=True)
    names = answer_names(study)
    for name, answer in evaluation.answers.items():
        row = [
            names[name] + (f", eta {evaluation.eta:g}" if name == "adaptive" else ""),
            f"{100 * answer.top1.value:.2f}",
            _interval(answer.top1, 100),
            "" if answer.top5 is None else f"{100 * answer.top5.value:.2f}",
            f"{answer.ece.value:.3f}",
            f"{answer.gmacs.value:.4g}",
        ]
        if timed:
            row.append("" if answer.latency_ms is None else f"{answer.latency_ms:.2f}")
        table.add_row(*row)
    console.print(table)
    if evaluation.exit_rate is not None:
        rate = evaluation.exit_rate
        console.print(f"exit early: {100 * rate.value:.1f} % {escape(_interval(rate, 100))}")
        rates = break_even(study, evaluation) or {}
        for kind, value in rates.items():
            if value is not None:
                console.print(f"by {'GMACs' if kind == 'gmacs' else 'latency'} adaptivity {describe_break_even(value)}")
    for name, difference in evaluation.differences.items():
        console.print(
            f"{name}: {100 * difference.value:+.2f} points {escape(_interval(difference, 100))}, the same images"
        )
    if evaluation.latency is not None:
        console.print(f"[dim]ms: medians of {evaluation.latency.images} pictures at batch 1, on this machine[/]")
    _print_worst(console.print, evaluation)


def _print_worst(say: Any, evaluation: Evaluation) -> None:
    from rich.markup import escape

    def accuracy(row: ClassRow) -> float:
        return (row.plain if row.adaptive is None else row.adaptive) or 0.0

    if len(evaluation.classes) > 1:
        worst = sorted(evaluation.classes, key=lambda row: (accuracy(row), row.index))[:_WORST_CLASSES]
        told = ", ".join(f"{row.label} {100 * accuracy(row):.1f} % of {row.images}" for row in worst)
        say(escape(f"hardest classes: {told}"))


def _interval(estimate: Estimate, scale: float) -> str:
    return f"[{scale * estimate.low:.2f}, {scale * estimate.high:.2f}]"
