"""The options of 8-bit variants, what they ask for, and how the outcome is told; `build` has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mscope.core.console import echo

if TYPE_CHECKING:
    from mscope.calib.variant import Quantizer

# Layers named on the terminal.
_LISTED = 8

Int8Option = Annotated[bool, typer.Option("--int8", help="Add int8 graphs; needs --calib-data.")]
Fp8Option = Annotated[bool, typer.Option("--fp8", help="Add fp8 (E4M3) graphs, for TensorRT; needs --calib-data.")]
CalibDataOption = Annotated[
    str | None,
    typer.Option(help="Labelled pictures to calibrate and compare on: a folder, a list or digits.", show_default=False),
]
CalibImagesOption = Annotated[
    int | None, typer.Option(help="Pictures to calibrate on.  [default: 256]", show_default=False)
]
CalibMethodOption = Annotated[
    str | None, typer.Option(help="percentile, minmax or entropy.  [default: percentile]", show_default=False)
]
CalibRangesOption = Annotated[
    Path | None,
    typer.Option(help="Take the ranges from a bundle's .quantisation.json, not from pictures.", show_default=False),
]
SmoothingOption = Annotated[
    float | None,
    typer.Option(help="Share of outliers moved into weights, 0 to 1; 0: none.  [default: 0.5]", show_default=False),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option(help="Refuse a variant that loses more points of accuracy.  [default: 1]", show_default=False),
]


def quantizers_from(
    *,
    int8: bool,
    fp8: bool,
    data: str | None,
    images: int | None,
    method: str | None,
    ranges: Path | None,
    smoothing: float | None,
    max_drop: float | None,
) -> list[Quantizer]:
    """The derivations that the options ask for, in the order int8, fp8.

    Raises:
        InputError: no data, a value out of range, or an option of calibration without --int8 or --fp8.
    """
    from mscope.core.errors import InputError

    given = {
        "--calib-data": data, "--calib-images": images, "--calib-method": method, "--calib-ranges": ranges,
        "--smoothing": smoothing, "--max-drop": max_drop,
    }  # fmt: skip
    if not (int8 or fp8):
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} belongs to --int8 and --fp8: add one of them, or leave it out")
        return []
    if ranges is not None:
        for name in ("--calib-images", "--calib-method", "--smoothing"):
            if given[name] is not None:
                raise InputError(f"{name} is about calibrating, --calib-ranges is instead of it: give one of the two")
    from mscope.calib.variant import QuantizeOptions, Quantizer

    chosen: dict[str, Any] = {"data": data, "images": images, "method": method, "ranges": ranges, "max_drop": max_drop}
    fields = {name: value for name, value in chosen.items() if value is not None}
    if smoothing is not None:
        # 0 would still divide by the weights' magnitudes (SmoothQuant's formula); a user who says 0 wants none.
        fields["smoothing"] = smoothing if smoothing != 0 else None
    asked = [precision for precision, wanted in (("int8", int8), ("fp8", fp8)) if wanted]
    return [Quantizer(QuantizeOptions(precision=precision, **{"data": None, **fields})) for precision in asked]  # type: ignore[arg-type]


def quantisation_json(quantizers: list[Quantizer]) -> dict[str, Any]:
    """What was made, by precision, for `--json`; empty without any. The ranges stay in the bundle's own record."""
    made = {}
    for quantizer in quantizers:
        assert quantizer.result is not None
        record = quantizer.result.model_dump(mode="json", exclude={"calibration": {"stages"}, "sensitivity": True})
        made[quantizer.result.precision] = record | {"notes": list(quantizer.notes)}
    return {"quantisation": made} if made else {}


def print_quantisation(quantizers: list[Quantizer]) -> None:
    """A line on what the gate found for each variant, one on the layers left out, notes on stderr."""
    if not quantizers:
        return
    from mscope.calib.record import record_name

    for quantizer in quantizers:
        assert quantizer.result is not None
        result = quantizer.result
        gate = result.gate
        accuracy = ", ".join(
            f"{path} {100 * gate.reference[path]:.1f} -> {100 * value:.1f} %" for path, value in gate.accuracy.items()
        )
        flips = "" if gate.exit_flips is None else f", exits flipped {gate.exit_flips:.1%}"
        regions = "" if gate.selected_agreement is None else f", regions shared {gate.selected_agreement:.1%}"
        echo(f"  gate     {result.precision}: {accuracy}{flips}{regions} ({gate.images} pictures)")
        out = [f"{stage} {group}" for stage, groups in result.left_out.items() for group in groups]
        if out:
            more = (
                "" if len(out) <= _LISTED else f" and {len(out) - _LISTED} more, all in {record_name(result.precision)}"
            )
            listed = ", ".join(out[:_LISTED])
            echo(f"  left out {result.precision}: {len(out)} layers stay in fp32: {listed}{more}")
        for note in quantizer.notes:
            echo(f"note: {result.precision}: {note}", err=True)
