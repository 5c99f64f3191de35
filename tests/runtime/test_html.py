"""The HTML report: well formed, self-contained, complete, safe against what names may hold; drawn by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import profiles
from mscope.runtime.profiling import html, words
from mscope.runtime.profiling.markdown import to_markdown
from mscope.runtime.profiling.schema import BatchProfile, PathEnergy, Power, Profile
from mscope.runtime.profiling.svg import WIDTH, Bar, Line, bar_chart, clean, line_chart, ticks
from mscope.runtime.profiling.text import print_profile

HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b[31m</title></style><img src=http://evil.example/x>\ud800"
VOID = {"meta", "br", "img", "hr", "link", "input"}


def with_power(**changes: Any) -> Profile:
    paths = tuple(
        PathEnergy(
            path=path, batch=1, images=100, seconds=5.0, readings=50, watts=9.0, joules_per_image=0.1 * i,
            net_joules_per_image=0.06 * i, uncertainty_joules_per_image=0.004,
        )
        for i, path in enumerate(("exit", "refine"), 1)
    )  # fmt: skip
    lost = PathEnergy(path="plain", batch=1, images=10, seconds=1.0, reason="the sensor was unplugged")
    power = Power(
        sensor="tegrastats",
        total="VDD_IN: all",
        idle_watts=4.2,
        rails={"VDD_IN": 9.4},
        paths=(*paths, lost),
        temperature_c={"tj": 61.5},
        clocks_mhz={"GR3D": 918.0},
        mode="MAXN",
        clocks_pinned=True,
        throttled=False,
    )
    return profiles.sample_profile(power=power, **changes)


def hostile() -> Profile:
    """Every text that a bundle, a machine or a tool chooses, at its worst."""
    profile = with_power()
    text = HOSTILE
    table = profile.layers[0] if profile.layers else None
    power = profile.power
    assert table is not None
    assert power is not None
    rows = tuple(row.model_copy(update={"name": text, "block": text}) for row in table.rows)
    return profile.model_copy(
        update={
            "bundle": profile.bundle.model_copy(update={"name": text, "weights": text, "trained": False}),
            "machine": profile.machine.model_copy(update={"cpu": text, "device": text, "power_mode": text}),
            "versions": {text: text},
            "verdict": (text,),
            "warnings": (text,),
            "layers": (table.model_copy(update={"stage": text, "rows": rows}),),
            "power": power.model_copy(update={"total": text, "rails": {text: 1.0}, "notes": (text,)}),
        }
    )  # fmt: skip


class Strict(HTMLParser):
    """Every element that is opened is closed, in order; collects tags, attributes and the page's own text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def parsed(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("make", [with_power, hostile, lambda: profiles.sample_profile(count=1)])
def test_the_page_is_well_formed_and_needs_nothing(make: Any) -> None:
    page = html.to_html(make())
    parser = parsed(page)
    assert not {"script", "img", "iframe", "link", "object", "image", "use", "foreignobject"} & set(parser.tags)
    for name, value in parser.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "href", "xlink:href", "srcset", "style"}
        assert name == "xmlns" or "//" not in value
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == parser.tags.count("svg")
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.attrib["role"] == "img"
        title, description = root.find("{*}title"), root.find("{*}desc")
        assert title is not None
        assert description is not None
        assert title.text
        assert description.text
        assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {description.attrib['id']}"
        for element in root.iter():
            for name in ("x", "y", "x1", "y1", "x2", "y2", "width", "height", "cx", "cy"):
                if name in element.attrib:
                    assert np.isfinite(float(element.attrib[name]))
            assert "nan" not in element.attrib.get("d", "")


def test_hostile_names_are_text() -> None:
    parser = parsed(html.to_html(hostile()))
    shown = "".join(parser.text)
    assert "<script>alert(1)</script>" in shown, "shown as it is, not dropped"
    assert "\x00" not in shown
    assert "\ud800" not in shown
    html.to_html(hostile()).encode("utf-8")


def test_everything_that_was_measured_is_there() -> None:
    profile = with_power()
    page = html.to_html(profile)
    shown = "".join(parsed(page).text)
    for line in (*profile.verdict, *profile.warnings):
        assert line in shown
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles == [
        "Latency by path, batch 1", "Where the time goes, batch 1", "Expected latency over eta, batch 1",
        "Accuracy over latency, batch 1", "Expected energy over eta, batch 1", "Latency by path, batch 8",
        "Where the time goes, batch 8", "Expected latency over eta, batch 8", "Accuracy over latency, batch 8",
        "Every node of coarse, batch 1",
        "Time by block: coarse, batch 1", "Every node of fine, batch 1", "Time by block: fine, batch 1", "Memory",
    ]  # fmt: skip
    exits = profile.batches[0].paths["exit"].total.summary
    for line in ("tj 62 °C", "GR3D 918 MHz", "Power mode: MAXN", "Throttled meanwhile: no", "jetson_clocks: yes"):
        assert line in shown
    for number in (
        f"{exits.p50_ms:.2f}",
        f"{exits.p99_ms:.2f}",
        "break-even",
        "the sensor was unplugged",
        "Invented CPU",
    ):
        assert number in shown
    assert page.count("<details>") == len(titles) + 1, "each figure has its numbers as a table, and so have the rails"


def test_the_break_even_is_spoken_of_where_it_is_drawn() -> None:
    profile = profiles.sample_profile()
    batch = profile.batches[0]
    page = html.to_html(profile.model_copy(update={"batches": (batch,)}))
    assert page.count("break-even the adaptive network") == page.count(">break-even ") == 1
    never = batch.model_copy(update={"break_even_exit_rate": -0.1, "break_even_eta": None})
    page = html.to_html(profile.model_copy(update={"batches": (never,)}))
    assert "break-even the adaptive network" not in page


def test_what_was_not_measured_is_not_there() -> None:
    bare = profiles.sample_profile(
        cold_start=None, memory=None, idle_gaps=None, layers=None, compare=None, compare_runtime=None, verdict=(),
        warnings=(),
    )  # fmt: skip
    shown = "".join(parsed(html.to_html(bare)).text)
    for word in ("Power", "Memory", "pause", "block", "doubtful", "cold start", "joules"):
        assert word not in shown


def test_untrained_weights_are_told_first() -> None:
    profile = profiles.sample_profile()
    profile = profile.model_copy(update={"bundle": profile.bundle.model_copy(update={"trained": False})})
    page = html.to_html(profile.model_copy(update={"warnings": words.warnings_about(profile)}))
    assert page.count("weights are untrained") == 1
    assert page.index("weights are untrained") < page.index("Figures")


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    html.write_html(profiles.sample_profile(count=20), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    with pytest.raises(FileNotFoundError):
        html.write_html(profiles.sample_profile(count=20), tmp_path / "absent" / "report.html")


def test_the_curve_is_where_the_data_are() -> None:
    """The ends of a straight line map to the corners of the axes, and its middle to the middle."""
    drawing = line_chart(
        "a", "A", "a line", [Line("a", 0, [0.0, 5.0, 10.0], [0.0, 1.0, 2.0])], x_label="x", y_label="y",
        x_range=(0.0, 10.0), y_range=(0.0, 2.0),
    )  # fmt: skip
    root = ElementTree.fromstring(drawing)
    path = next(
        element.attrib["d"]
        for element in root.iter()
        if element.attrib.get("class") == "line0" and "d" in element.attrib
    )
    (x1, y1), (x2, y2), (x3, y3) = [
        tuple(float(n) for n in pair.split()) for pair in re.split("[ML]", path.replace(" L", "L"))[1:]
    ]
    axis = next(element.attrib for element in root.iter() if element.attrib.get("class") == "axis")
    assert (x1, y1) == (float(axis["x1"]), float(axis["y1"]))
    assert x3 == float(axis["x2"])
    assert y3 < y2 < y1
    assert (x2, y2) == pytest.approx(((x1 + x3) / 2, (y1 + y3) / 2), abs=0.1)


def test_bars_are_as_long_as_their_values() -> None:
    root = ElementTree.fromstring(
        bar_chart("b", "B", "bars", [("p", 0), ("q", 1)], [Bar("one", [1, 3], ""), Bar("two", [2, 0], "")])
    )
    widths = [
        float(e.attrib["width"]) for e in root.iter() if e.tag.endswith("rect") and float(e.attrib["height"]) == 12
    ]
    assert widths == pytest.approx([widths[0], 3 * widths[0], 2 * widths[0]], abs=0.2)


@pytest.mark.parametrize("low, high", [(0, 1), (0.9, 1.0), (0, 1e-6), (123.4, 987.6), (-3, 4), (0, 1e7)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low - 1e-9 <= found[0] <= found[-1] <= high + (high - low) * 1e-6
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.1e}"[:3] in {"1.0", "2.0", "2.5", "5.0"}


def test_clean_keeps_letters_of_every_script() -> None:
    assert clean("Ampère 猫 😀 <&>") == "Ampère 猫 😀 &lt;&amp;&gt;"
    assert clean("\x07\ufffe\ud83d") == "\ufffd\ufffd\ufffd"


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: the page is parsed above, but not drawn")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_without_overflow(tmp_path: Path, width: int) -> None:
    """Loads the page in Chromium and asks for its laid-out size: nothing is wider than the window."""
    assert CHROMIUM is not None
    page = html.to_html(hostile() if width == 390 else with_power())
    probe = (
        "<script>addEventListener('load',()=>{const e=document.documentElement;document.title="
        "`${e.scrollWidth} ${e.clientWidth} ${document.querySelectorAll('svg').length} "
        "${[...document.querySelectorAll('svg')].every(s=>s.getBoundingClientRect().height>20)}`})</script>"
    )
    # The probe is this test's: the policy that keeps scripts out is lifted for it.
    page = re.sub(r"<meta http-equiv.*?>", "", page).replace("</body>", probe + "</body>")
    # A frame of that width, because headless windows are not narrower than 500 pixels.
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    outer = (
        f"<iframe src=page.html style='width:{width}px;height:900px;border:0' "
        'onload="setTimeout(()=>{document.title=this.contentDocument.title},200)"></iframe>'
    )
    (tmp_path / "outer.html").write_text(outer)
    shown = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
            (tmp_path / "outer.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+) (\d+) (true|false)</title>", shown.stdout)
    assert found is not None, shown.stdout[:500] + shown.stderr[-500:]
    scroll, client, drawings, drawn = int(found[1]), int(found[2]), int(found[3]), found[4]
    assert client <= width
    assert scroll <= client, "something is wider than the page"
    assert drawings >= 5
    assert drawn == "true"


def of_one_path(profile: Profile) -> BatchProfile:
    """The first batch, as a profile of a ViM has it."""
    batch = profile.batches[0]
    return batch.model_copy(
        update={
            "paths": {"plain": batch.paths["plain"]}, "fine_one": None, "expected": (), "expected_by_exit_rate": (),
            "break_even_exit_rate": None, "break_even_eta": None,
        }
    )  # fmt: skip


def test_a_bundle_without_a_fine_stage_has_its_one_path() -> None:
    profile = profiles.sample_profile()
    page = html.to_html(profile.model_copy(update={"batches": (of_one_path(profile),), "layers": None, "memory": None}))
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Latency by path", "Where the time goes"]
    shown = "".join(parsed(page).text)
    assert "leaves early" not in shown
    assert "adaptivity pays" not in shown


def test_a_reduced_vim_is_called_by_its_name_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    profile = profiles.sample_profile()
    name = "ViM, merged to 0.7"
    identity = profile.bundle.model_copy(update={"arch": "vim", "reduced": name})
    profile = profile.model_copy(
        update={"bundle": identity, "batches": (of_one_path(profile),), "compare": None, "layers": None, "memory": None}
    )
    profile = profile.model_copy(update={"verdict": words.verdict(profile)})
    assert profile.verdict[0].startswith(f"{name} ")
    print_profile(profile)
    for text in (html.to_html(profile), to_markdown(profile), capsys.readouterr().out):
        assert name in text
        assert "plain ViM" not in text


def test_the_flame_shows_every_node_in_order_as_wide_as_its_time() -> None:
    profile = profiles.sample_profile()
    assert profile.layers is not None
    table = profile.layers[0]
    drawings = re.findall(r"<svg.*?</svg>", html.to_html(profile), flags=re.DOTALL)
    flames = [drawing for drawing in drawings if "Every node" in drawing]
    assert len(flames) == len(profile.layers)
    root = ElementTree.fromstring(flames[0])
    rects = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if len(rect)]
    nodes = rects[-len(table.rows) :]
    widths = [float(rect.get("width", "")) for rect in nodes]
    names = [(rect[0].text or "").rpartition(":")[0] for rect in nodes]
    assert names == [row.name for row in table.rows]
    assert [float(rect.get("x", "")) for rect in nodes] == sorted(float(rect.get("x", "")) for rect in nodes)
    times = [row.median_ms for row in table.rows]
    assert np.corrcoef(widths, times)[0, 1] > 0.99
    assert float(nodes[-1].get("x", "")) + widths[-1] <= WIDTH
