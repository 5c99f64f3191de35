"""Pictures of an evaluation: accuracy over cost, and confidence against accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mscope.calib.evaluate import Answers, Evaluation
from mscope.core.errors import InputError
from mscope.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _ACCENT, _GREY, _WARM, _RULE = "#1f2933", "#1565c0", "#7b8794", "#c2410c", "#e4e7eb"
_MEGA_BELOW = 0.1  # GMACs
_FEW_IN_BIN = 10  # below it a bin's accuracy is mostly chance
_ETAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def plot_curve(evaluation: Evaluation, title: str, path: Path) -> None:
    """Accuracy over mean cost as eta varies, beside both ends and plain ViM; a second panel over time where measured.

    Writes a PNG. The evaluation must be an adaptive bundle's.
    """
    plt = _pyplot()
    timed = evaluation.curve[0].latency_ms is not None
    figure, axes = plt.subplots(
        1, 2 if timed else 1, figsize=(12.4 if timed else 7.6, 4.8), dpi=150, sharey=True, squeeze=False
    )
    mega = max(point.gmacs for point in evaluation.curve) < _MEGA_BELOW
    unit, scale = ("million multiply-accumulates", 1e3) if mega else ("GMACs", 1.0)
    _panel(axes[0, 0], evaluation, "gmacs", scale, f"mean cost of an image, {unit}")
    axes[0, 0].set_ylabel("top-1 accuracy, %")
    axes[0, 0].legend(loc="lower right", frameon=False, fontsize=9)
    if timed:
        _panel(axes[0, 1], evaluation, "latency_ms", 1.0, "expected time of an image at batch 1, ms, on this machine")
    axes[0, 0].set_title(title, loc="left", color=_INK, size=12)
    _save(figure, path)


def plot_reliability(evaluation: Evaluation, names: Mapping[str, str], title: str, path: Path) -> None:
    """For each way to answer: accuracy over confidence beside the diagonal, and how many images have it.

    Bars of fewer than ten images are pale. Writes a PNG. `names`: what the answers are called (report.answer_names).
    """
    plt = _pyplot()
    ways = [(name, evaluation.answers[name]) for name in ("coarse", "fine", "adaptive", "plain") if
            name in evaluation.answers]  # fmt: skip
    figure, axes = plt.subplots(
        2, len(ways), figsize=(3.3 * len(ways) + 0.8, 4.6), dpi=150, sharex=True, sharey="row", squeeze=False,
        gridspec_kw={"height_ratios": (4, 1)},
    )  # fmt: skip
    for column, (name, answer) in enumerate(ways):
        _reliability_panel(axes[0, column], axes[1, column], names[name], answer)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    figure.suptitle(f"{title} (pale: fewer than {_FEW_IN_BIN} in the bin)", x=0.01, ha="left", color=_INK, size=12)
    _save(figure, path)


def _panel(axes: Axes, evaluation: Evaluation, field: str, scale: float, label: str) -> None:
    curve = evaluation.curve
    x = [scale * getattr(row, field) for row in curve]
    low = [100 * row.accuracy_low for row in curve]
    high = [100 * row.accuracy_high for row in curve]
    level = f"{100 * evaluation.level:g} %"
    axes.fill_between(x, low, high, color=_ACCENT, alpha=0.13, lw=0, label=f"{level} interval")
    axes.plot(
        x, [100 * row.accuracy for row in curve], color=_ACCENT, lw=2, label="adaptive, as $\\eta$ varies", zorder=3
    )
    for name, marker, colour, text in (
        ("coarse", "s", _INK, "coarse stage alone"),
        ("fine", "^", _INK, "every image refined"),
        ("plain", "D", _WARM, "plain ViM"),
    ):
        answer = evaluation.answers.get(name)
        place = None if answer is None else answer.gmacs.value if field == "gmacs" else answer.latency_ms
        if answer is None or place is None:
            continue
        top1 = 100 * answer.top1.value
        axes.plot(scale * place, top1, marker, color=colour, ms=7, ls="none", label=text, zorder=4)
        if name == "plain":
            axes.axhline(top1, color=_WARM, lw=1, ls=(0, (4, 3)))
    _mark_etas(axes, evaluation, x)
    axes.set_xlabel(label)
    _tidy(axes)


def _mark_etas(axes: Axes, evaluation: Evaluation, x: list[float]) -> None:
    curve = evaluation.curve
    span = (max(x) - min(x)) or 1.0
    chosen = min(range(len(curve)), key=lambda i: abs(curve[i].eta - (evaluation.eta or 0.0)))
    axes.plot(x[chosen], 100 * curve[chosen].accuracy, "o", color=_ACCENT, ms=8, zorder=5)
    spot = (x[chosen], 100 * curve[chosen].accuracy)
    _label(axes, f"$\\eta$ = {curve[chosen].eta:g}", spot, (9, -15), color=_INK, size=10, weight="bold")
    taken = [x[chosen]]
    for eta in _ETAS:
        near = min(range(len(curve)), key=lambda i: abs(curve[i].eta - eta))
        if abs(curve[near].eta - eta) > 0.02 or any(abs(x[near] - other) < 0.06 * span for other in taken):
            continue
        taken.append(x[near])
        spot = (x[near], 100 * curve[near].accuracy)
        axes.plot(*spot, "o", color=_ACCENT, ms=3.5, zorder=4)
        _label(axes, f"{eta:g}", spot, (6, -10), color=_ACCENT, size=8)


def _label(axes: Axes, text: str, spot: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Below and to the right of the point, where a rising curve leaves room."""
    axes.annotate(text, spot, offset, textcoords="offset points", ha="left", **style)


def _reliability_panel(above: Axes, below: Axes, name: str, answer: Answers) -> None:
    left = [one.low for one in answer.bins]
    width = answer.bins[0].high - answer.bins[0].low
    above.plot([0, 1], [0, 1], color=_GREY, lw=1, ls=(0, (4, 3)))
    for one in answer.bins:
        strength = 0.75 if one.images >= _FEW_IN_BIN else 0.2
        above.bar(one.low, one.accuracy, width, align="edge", color=_ACCENT, alpha=strength, edgecolor="white", lw=0.8)
    above.plot(
        [one.confidence for one in answer.bins], [one.accuracy for one in answer.bins], ".", color=_INK, ms=5,
        clip_on=False, zorder=3,
    )  # fmt: skip
    above.set_title(f"{name}, ECE {answer.ece.value:.3f}", loc="left", color=_INK, size=10)
    below.bar(left, [one.images for one in answer.bins], width, align="edge", color=_GREY, edgecolor="white", lw=0.8)
    below.set_xlabel("confidence")
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    _tidy(above)
    _tidy(below)


def _tidy(axes: Axes) -> None:
    axes.grid(color=_RULE, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError("the plots need matplotlib: pip install 'mambascope-deploy[calib]'") from None

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)
