"""The tables of docs/ablations.md, rendered from the results; each lies there between two comments that name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal

from ablations import paper
from ablations.results import Figure, Results, Row
from ablations.variants import PAPER_LOSS

NONE = ""
_INFERENCE_HEAD = ("shipped weights: fine", "box", "paper's loss: fine", "box", "paper's loss, trained so: fine")
_METRICS = ("max", "topk", "softplus", "clip", "raw", "l1")


def render(results: Results) -> dict[str, str]:
    """Markdown of every table by its name."""
    tables: dict[str, Callable[[Results], list[list[str]]]] = {
        "metric": _metric,
        "beta": _beta,
        "layers": _layers,
        "alpha": _alpha,
        "ranking": _ranking,
        "reuse": lambda r: _retrained(r, "feature reuse", _REUSE),
        "order": lambda r: _retrained(r, "order of the fine stage's tokens", _ORDER),
        "eta": _eta,
        "paper-eta": _paper_eta,
    }
    return {name: _markdown(table(results)) for name, table in tables.items()}


def insert(document: str, tables: dict[str, str]) -> str:
    """`document` with the content of each `<!-- table: NAME -->` ... `<!-- end -->` replaced. Raises KeyError."""
    parts = document.split("<!-- table: ")
    result = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        _, _, after = rest.partition("<!-- end -->")
        result.append(f"<!-- table: {name} -->\n{tables[name]}\n<!-- end -->{after}")
    return "".join(result)


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, without its sign of percent; halves are rounded up, as people do."""
    return str(_rounded(value, digits))


def points(value: float) -> str:
    """A difference of shares in points, signed."""
    rounded = _rounded(value, 1)
    return f"{rounded:+}" if rounded else "0.0"


def _rounded(value: float, digits: int) -> Decimal:
    # Shares of a few thousand pictures have few decimals: what lies beyond is binary rounding.
    return Decimal(f"{100 * value:.6f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def with_interval(figure: Figure, show: Callable[[float], str] = percent) -> str:
    """A figure and its interval."""
    return f"{show(figure.value)} ({show(figure.low)} to {show(figure.high)})"


def _metric(results: Results) -> list[list[str]]:
    rows = [
        [
            "scored",
            "shipped weights: fine",
            "box",
            "paper's loss: fine",
            "box",
            "paper's loss, trained so: fine",
            "paper",
        ]
    ]
    for gated in (True, False):
        for metric in _METRICS:
            suffix = "" if gated else " gated_importance=false"
            first = (metric, gated) == ("max", True)
            name = "default" if first else f"metric={metric}{suffix}"
            trained = PAPER_LOSS if first else f"{PAPER_LOSS} metric={metric}" if gated else NONE
            if (metric, gated) == ("max", False):
                trained = f"{PAPER_LOSS} gated_importance=false"
            where = "Y gated" if gated else "before the gate"
            rows.append(
                [
                    f"`{metric}`, {where}",
                    *_inference(results, name),
                    _against(_find(results.trained, trained)),
                    paper.beside(metric if gated else NONE),
                ]
            )
    for name, label in (
        ("regions=random", "random regions"),
        ("regions=box", "most of the digit's box (known to us only)"),
    ):
        rows.append([label, *_inference(results, name), NONE, NONE])
    return rows


def _beta(results: Results) -> list[list[str]]:
    options = (
        ("beta=0", "0 (the last layer alone)", f"{PAPER_LOSS} beta=0"),
        ("beta=0.5", "0.5", NONE),
        ("beta=0.9", "0.9", NONE),
        ("default", "0.99", PAPER_LOSS),
        ("beta=0.999", "0.999", NONE),
        ("ema_start=first", "0.99, started at the first scored layer", NONE),
    )
    return _ranking_option(results, "beta", options)


def _layers(results: Results) -> list[list[str]]:
    options = (
        ("default", "4, 6 (second half, every second)", PAPER_LOSS),
        ("layers=4,5,6", "4, 5, 6", NONE),
        ("layers=2,4,6", "2, 4, 6", NONE),
        ("layers=all", "all", f"{PAPER_LOSS} layers=all"),
        *((f"layers={layer}", f"{layer} alone", NONE) for layer in range(1, 7)),
    )
    return _ranking_option(results, "layers scored", options)


def _ranking_option(results: Results, what: str, options: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    rows = [[what, *_INFERENCE_HEAD, "paper"]]
    for name, label, trained in options:
        cells = [*_inference(results, name), _against(_find(results.trained, trained)), paper.beside(label)]
        rows.append([label, *cells])
    return rows


def _alpha(results: Results) -> list[list[str]]:
    rows = [
        ["alpha", "refined", "cost of the fine stage, of plain ViM's", "shipped weights: fine", "trained so: fine",
         "paper's loss: fine", "paper: cost, of plain ViM's"]
    ]  # fmt: skip
    for alpha in (0.125, 0.25, 0.375, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0):
        name = "default" if alpha == 0.75 else f"alpha={alpha:g}"
        shipped = _need(results.shipped, name)
        theirs = paper.FINE_GMACS.get(0.7 if alpha == 0.75 else alpha)
        rows.append(
            [
                "0.75 (and 0.7)" if alpha == 0.75 else f"{alpha:g}",
                f"{shipped.regions_refined} of 16",
                f"{percent(shipped.mmacs_fine / results.mmacs_plain, 0)} %",
                _against(shipped),
                _against(_find(results.trained, name)),
                _against(_find(results.paper_loss, name)),
                NONE if theirs is None else f"{percent(theirs / paper.PLAIN_GMACS, 0)} %",
            ]
        )
    return rows


def _ranking(results: Results) -> list[list[str]]:
    rows = [["", "coarse", "fine", "by seed", f"adaptive, eta {results.eta:g}", "leave early", "box"]]
    for label, row in (
        ("shipped (long training, ranking 0.5)", _need(results.shipped, "default")),
        ("short training, ranking 0.5", _need(results.trained, "default")),
        ("short training, the paper's loss", _need(results.trained, PAPER_LOSS)),
        ("the same, random regions", _need(results.paper_loss, "regions=random")),
        ("the same, those with most of the digit", _need(results.paper_loss, "regions=box")),
        ("the same, all regions (alpha 1)", _need(results.paper_loss, "alpha=1")),
    ):
        by_seed = ", ".join(percent(value) for value in row.fine_by_seed) if len(row.seeds) > 1 else NONE
        accuracies = [with_interval(figure) for figure in (row.coarse, row.fine, row.adaptive)]
        accuracies.insert(2, by_seed)
        rows.append([label, *accuracies, f"{percent(row.exit_rate, 0)} %", percent(row.covered)])
    return rows


_REUSE = (
    ("default", "mlp"),
    ("reuse=linear", "linear"),
    ("reuse=none", "none"),
    ("reuse_class_token=true", "mlp, class token too"),
)
_ORDER = (
    ("default", "class-first"),
    ("order=class-middle", "class-middle"),
    ("order=class-after-important", "class-after-important"),
    ("order=unimportant-first", "unimportant-first"),
    ("fine_order=region", "class-first, a region's four patches together"),
)


def _retrained(results: Results, what: str, options: Sequence[tuple[str, str]]) -> list[list[str]]:
    rows = [
        [what, "trained so: coarse", "fine", "difference", "by seed", "shipped weights, as they are: fine", "paper"]
    ]
    for name, label in options:
        trained = _find(results.trained, name)
        shipped = _find(results.shipped, name)
        cells = [NONE] * 4
        if trained is not None:
            change = trained.fine_difference
            cells = [
                percent(trained.coarse.value),
                with_interval(trained.fine),
                with_interval(change, points) if change else NONE,
                ", ".join(points(value) for value in trained.fine_difference_by_seed),
            ]
        rows.append([f"`{label}`" if " " not in label else label, *cells, _against(shipped), paper.beside(label)])
    return rows


def _eta(results: Results) -> list[list[str]]:
    rows = [["eta", "leave early", "mean cost, of plain ViM's", "accuracy", "from plain ViM, points"]]
    for point in results.etas:
        rows.append(
            [
                f"{point.eta:g}",
                f"{percent(point.exit_rate, 0)} %",
                f"{percent(point.of_plain, 0)} %",
                with_interval(point.accuracy),
                with_interval(point.from_plain, points),
            ]
        )
    return rows


def _paper_eta(_: Results) -> list[list[str]]:
    rows = [["paper, ImageNet-1K", "top-1", "GMACs", "mean cost, of plain ViM's", "from plain ViM, points"]]
    for point in paper.POINTS:
        rows.append(
            [
                point.name,
                f"{point.top1:.1f}",
                f"{point.gmacs:g}",
                f"{percent(point.of_plain, 0)} %",
                points(point.difference / 100),
            ]
        )
    return rows


def _inference(results: Results, name: str) -> list[str]:
    """Fine accuracy and coverage of the box, on the shipped weights and on those of the paper's loss."""
    cells = []
    for rows in (results.shipped, results.paper_loss):
        row = _find(rows, name)
        cells += [NONE, NONE] if row is None else [_against(row), percent(row.covered)]
    return cells


def _against(row: Row | None) -> str:
    """Fine accuracy; difference from the base with its interval, and by seed, where there is one."""
    if row is None:
        return NONE
    if row.fine_difference is None or row.name == PAPER_LOSS:
        return f"**{percent(row.fine.value)}**"  # what the others of its column are compared with
    by_seed = ", ".join(points(value) for value in row.fine_difference_by_seed)
    seeds = f" [{by_seed}]" if len(row.seeds) > 1 else ""
    return f"{percent(row.fine.value)}; {with_interval(row.fine_difference, points)}{seeds}"


def _find(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row.name == name), None)


def _need(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
