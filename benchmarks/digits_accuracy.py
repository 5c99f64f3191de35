"""Accuracy of the shipped digits networks on the test split, over mean GMACs: a JSON file and a plot.

    python benchmarks/digits_accuracy.py [--pictures 4000]

Writes benchmarks/results/digits_accuracy.json and docs/images/digits_curve.png. Needs the extras `calib` and the
package installed (or the source roots on PYTHONPATH).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mscope.core.config import config_for
from mscope.core.manifest import CurvePoint
from mscope.model.checkpoint import model_from_checkpoint
from mscope.model.shipped import shipped_weights
from mscope.model.training.report import Measured, measure, render

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "digits_accuracy.json"
PLOT = ROOT / "docs" / "images" / "digits_curve.png"
# Etas written beside their points, where these do not crowd.
MARKED_ETAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def measured(arch: str, pictures: int) -> Measured:
    """The shipped network of an architecture on the first pictures of the test split."""
    path = shipped_weights("digits", arch)
    assert path is not None
    return measure(model_from_checkpoint(config_for("digits", arch), path).model, pictures=pictures)


def chosen_point(scope: Measured) -> CurvePoint:
    """The point of the eta that was chosen on the validation split, as the weights' record has it."""
    path = shipped_weights("digits", "mambascope")
    assert path is not None
    eta = json.loads((path.parent / "digits.json").read_text())["eta"]
    return next(point for point in scope.curve if point.eta == eta)


def summary(scope: Measured, vim: Measured) -> dict[str, Any]:
    """The claim of the README in numbers."""
    chosen = chosen_point(scope)
    return {
        "plain_accuracy": vim.plain,
        "coarse_accuracy": scope.coarse,
        "fine_accuracy": scope.fine,
        "eta_chosen_on_validation": chosen.eta,
        "adaptive_accuracy": chosen.accuracy,
        "exit_rate": chosen.exit_rate,
        "gmacs_saved": 1 - chosen.gmacs / vim.gmacs.full,
    }


def plot(scope: Measured, vim: Measured, path: Path) -> None:
    """Accuracy over mean MMACs: the eta curve, its two ends, plain ViM, and random regions in place of the ranking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    assert vim.plain is not None
    assert scope.coarse is not None
    assert scope.fine is not None
    ink, accent, grey, warm = "#1f2933", "#1565c0", "#7b8794", "#c2410c"
    figure, axes = plt.subplots(figsize=(8.2, 4.8), dpi=150)
    x = [1e3 * point.gmacs for point in scope.curve]
    y = [100 * point.accuracy for point in scope.curve]
    both = 1e3 * (scope.gmacs.coarse + scope.gmacs.fine)
    full = 1e3 * vim.gmacs.full

    axes.axhspan(100 * vim.plain - 0.5, 100 * vim.plain, color=warm, alpha=0.10, lw=0)
    axes.axhline(100 * vim.plain, color=warm, lw=1, ls=(0, (4, 3)))
    axes.plot(x, y, "-o", color=accent, lw=2, ms=4.5, label="MambaScope, adaptive (each point one $\\eta$)", zorder=3)
    axes.plot(1e3 * scope.gmacs.coarse, 100 * scope.coarse, "s", color=ink, ms=8, label="coarse stage only", zorder=4)
    axes.plot(full, 100 * vim.plain, "D", color=warm, ms=8, label="plain ViM (band: within 0.5 points)", zorder=4)
    if scope.fine_random_regions is not None:
        axes.plot(both, 100 * scope.fine_random_regions, "X", color=grey, ms=9, zorder=4,
                  label="every picture refined, random regions")  # fmt: skip
    last = None
    for point in scope.curve:
        spot = (1e3 * point.gmacs, 100 * point.accuracy)
        near = last is not None and abs(spot[0] - last[0]) < 0.035 * both
        if point.eta in MARKED_ETAS and not near:
            axes.annotate(f"{point.eta:g}", spot, (0, 7), textcoords="offset points", ha="center", color=accent, size=8)
            last = spot
    chosen = chosen_point(scope)
    spot = (1e3 * chosen.gmacs, 100 * chosen.accuracy)
    saved = 100 * (1 - chosen.gmacs / vim.gmacs.full)
    axes.annotate(
        f"$\\eta$ = {chosen.eta:g}, chosen on validation pictures:\n"
        f"{spot[1]:.1f} % with {saved:.0f} % fewer MACs than plain ViM",
        spot, (14, -62), textcoords="offset points", color=ink, size=9,
        arrowprops={"arrowstyle": "->", "color": ink, "lw": 0.9, "shrinkB": 5},
    )  # fmt: skip
    axes.set_xlabel("mean cost of a picture, million multiply-accumulates")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"Cluttered digits, {scope.pictures} test pictures", loc="left", color=ink, size=12)
    axes.grid(color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlim(left=0.9e3 * scope.gmacs.coarse, right=1.06 * max(both, full))
    axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.38), frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    pictures = parser.parse_args().pictures
    scope, vim = measured("mambascope", pictures), measured("vim", pictures)
    result = {
        "summary": summary(scope, vim),
        "mambascope": scope.model_dump(exclude_none=True),
        "vim": vim.model_dump(exclude_none=True),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    plot(scope, vim, PLOT)
    print(render(vim), render(scope), json.dumps(result["summary"], indent=1), f"{RESULT}\n{PLOT}", sep="\n")


if __name__ == "__main__":
    main()
