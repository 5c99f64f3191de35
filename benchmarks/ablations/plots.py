"""The picture of docs/ablations.md: what a ranking of the regions is worth, and what alpha is."""

from __future__ import annotations

from pathlib import Path

from ablations.results import Results, Row

_INK, _ACCENT, _GREY, _WARM = "#1f2933", "#1565c0", "#7b8794", "#c2410c"


def plot(results: Results, path: Path) -> None:
    """Draws two panels: fine accuracy over the share of the digit that was refined, and over alpha."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.3), dpi=110)
    for rows, colour, label in (
        (results.shipped, _ACCENT, "shipped weights"),
        (results.paper_loss, _WARM, "trained with the paper's loss"),
    ):
        default = _find(rows, "default")
        ranked = [row for row in rows if row.table in ("metric", "beta", "layers")]
        left.plot(*_points(ranked), "o", color=colour, ms=5, alpha=0.55, label=f"{label}: another ranking")
        left.plot(*_points([default]), "*", color=colour, ms=15, mec="white", label=f"{label}: as trained")
        left.plot(*_points([_find(rows, "regions=random")]), "X", color=colour, ms=9, mec="white")
        right.plot(*_alphas(rows), "-o", color=colour, lw=2, ms=4.5, label=label)
    left.plot([], [], "X", color=_GREY, ms=9, label="random regions")
    trained = [row for row in results.trained if row.name.startswith("alpha=") or row.name == "default"]
    right.plot(*_alphas(trained), "s", color=_INK, ms=7, label="fine-tuned with that alpha, short")
    right.axhline(100 * results.plain.value, color=_GREY, lw=1, ls=(0, (4, 3)), label="plain ViM")
    left.set_xlabel("share of the digit's box in the refined regions, %")
    left.set_title("12 of 16 regions refined: which ones", loc="left", color=_INK, size=11)
    right.set_xlabel("alpha")
    right.set_title("how many", loc="left", color=_INK, size=11)
    for axes in (left, right):
        axes.set_ylabel("accuracy of the fine stage, %")
        axes.grid(color="#e4e7eb", lw=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.2, 0.3))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [100 * row.covered for row in rows], [100 * row.fine.value for row in rows]


def _alphas(rows: tuple[Row, ...] | list[Row]) -> tuple[list[float], list[float]]:
    """Refined share and fine accuracy of the rows that differ in alpha, the default among them."""
    chosen = sorted(
        (row.regions_refined / 16, 100 * row.fine.value)
        for row in rows
        if row.table == "alpha" or row.name == "default"
    )
    return [share for share, _ in chosen], [accuracy for _, accuracy in chosen]


def _find(rows: tuple[Row, ...], name: str) -> Row:
    return next(row for row in rows if row.name == name)
