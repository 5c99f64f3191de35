"""A profile as one page that needs nothing else: no network, no script, charts inline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mscope.core.files import write_text_atomically
from mscope.runtime.profiling.facts import facts, headline, power_lines, tiles
from mscope.runtime.profiling.html_charts import Figure, figures
from mscope.runtime.profiling.schema import Profile
from mscope.runtime.profiling.svg import clean
from mscope.runtime.profiling.words import path_words

_STYLE = Path(__file__).with_name("html_style.css")
# Nothing may be fetched and nothing may run, whatever a label says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_html(profile: Profile, path: Path) -> None:
    """Writes the page, whole or not at all."""
    write_text_atomically(path, to_html(profile))


def to_html(profile: Profile) -> str:
    """The page. Every text of the profile is escaped: names, labels and versions are whatever somebody wrote."""
    title = headline(profile)
    body = [
        f"<h1>{clean(title)}</h1>",
        f'<p class="soft">{clean(_subtitle(profile))}</p>',
        *_words(profile),
        _tiles(profile),
        "<h2>Figures</h2>",
        f'<div class="charts">{"".join(_figure(figure) for figure in figures(profile))}</div>',
        *_power(profile),
        *_idle_gaps(profile),
        "<h2>What was measured, on what</h2>",
        f'<div class="card scroll">{_facts(facts(profile))}</div>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{clean(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _subtitle(profile: Profile) -> str:
    runtime, machine = profile.runtime, profile.machine
    where = machine.device or machine.cpu
    return f"{where}; {runtime.backend}, {runtime.precision}, {runtime.kernel} kernels; {profile.created}"


def _words(profile: Profile) -> list[str]:
    found = []
    if profile.verdict:
        lines = "".join(f"<p>{clean(line)}</p>" for line in profile.verdict)
        found.append(f'<section class="words" aria-label="In plain words">{lines}</section>')
    doubts = list(profile.warnings)
    if doubts:
        lines = "".join(f"<li>{clean(line)}</li>" for line in doubts)
        found.append(f'<section class="warnings"><b>What makes these figures doubtful</b><ul>{lines}</ul></section>')
    return found


def _tiles(profile: Profile) -> str:
    cells = "".join(
        f'<div class="tile"><span>{clean(name)}</span><b>{clean(value)}</b><span>{clean(note)}</span></div>'
        for name, value, note in tiles(profile)
    )
    return f'<div class="tiles">{cells}</div>'


def _figure(figure: Figure) -> str:
    table = _table(figure.head, figure.rows)
    return (
        f"<figure><h3>{clean(figure.title)}</h3><figcaption>{clean(figure.caption)}</figcaption>{figure.svg}"
        f'<details><summary>The numbers</summary><div class="scroll">{table}</div></details></figure>'
    )


def _power(profile: Profile) -> list[str]:
    power = profile.power
    if power is None:
        return []
    rows, called = [], path_words(profile)
    for entry in power.paths:
        error = entry.uncertainty_joules_per_image
        cells = [
            f"{called[entry.path]}, batch {entry.batch}",
            "" if entry.watts is None else f"{entry.watts:.2f}",
            "" if entry.joules_per_image is None else f"{entry.joules_per_image:.4g}",
            "" if entry.net_joules_per_image is None else f"{entry.net_joules_per_image:.4g}",
            "" if error is None else f"± {error:.2g}",
            entry.reason or "",
        ]
        rows.append(tuple(cells))
    head = ("path", "watts", "J an image", "idle subtracted", "sampling", "why not")
    words = "".join(f'<p class="soft">{clean(line)}</p>' for line in power_lines(power))
    rails = _table(("rail", "watts under load"), [(name, f"{watts:.2f}") for name, watts in power.rails.items()])
    return [
        "<h2>Power</h2>",
        f'<div class="card">{words}<div class="scroll">{_table(head, rows)}</div>'
        f'<details><summary>Rails</summary><div class="scroll">{rails}</div></details></div>',
    ]


def _idle_gaps(profile: Profile) -> list[str]:
    if not profile.idle_gaps:
        return []
    rows = [
        (
            "back to back" if gap.gap_s == 0 else f"{gap.gap_s:g} s",
            *(f"{v:.2f}" for v in (s.p50_ms, s.p90_ms, s.max_ms)),
        )
        for gap in profile.idle_gaps
        for s in (gap.total.summary,)
    ]
    table = _table(("pause before", "p50 ms", "p90 ms", "max ms"), rows)
    return ["<h2>The first image after a pause</h2>", f'<div class="card scroll">{table}</div>']


def _facts(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{clean(name)}</th><td>{clean(value)}</td></tr>' for name, value in rows)
    return f'<table class="facts"><tbody>{cells}</tbody></table>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{clean(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{clean(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
