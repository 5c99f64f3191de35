"""The Markdown report: tables that are tables, names that cannot break out of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import profiles
from mscope.runtime.profiling import markdown
from mscope.runtime.profiling.schema import PathEnergy, Power


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_every_table_has_even_rows() -> None:
    text = markdown.to_markdown(profiles.sample_profile())
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 6, 2 + 2]  # paths of two batches; the two etas that were asked for
    for table in tables:
        assert len({columns(line) for line in table}) == 1
        assert re.fullmatch(r"\| --- (\| ---: )+\|", table[1])


def test_the_figures_are_the_profile_s() -> None:
    profile = profiles.sample_profile()
    text = markdown.to_markdown(profile)
    summary = profile.batches[0].paths["refine"].total.summary
    assert f"| is refined | 1 | {summary.p50_ms:.2f} | {summary.p90_ms:.2f} | {summary.p99_ms:.2f} |" in text
    assert f"**{profile.verdict[0]}**" in text
    assert "> Doubtful:\n>\n> - the latencies scatter" in text
    assert "J an image" not in text, "no sensor, no column"


def test_energy_that_could_not_be_measured_is_said() -> None:
    paths = (
        PathEnergy(path="exit", batch=1, images=9, seconds=1.0, watts=9.0, joules_per_image=0.5),
        PathEnergy(path="refine", batch=1, images=9, seconds=1.0, reason="too few"),
    )
    power = Power(sensor="rapl", total="package-0", idle_watts=None, rails={}, paths=paths)
    text = markdown.to_markdown(profiles.sample_profile(power=power))
    assert "0.5, idle included |" in text
    assert "not measured |" in text


def test_names_cannot_break_out() -> None:
    profile = profiles.sample_profile()
    name = "a|b\n# heading <img src=x> [link](http://x) `code` **bold** &amp;"
    text = markdown.to_markdown(profile.model_copy(update={"verdict": (name,), "warnings": (name,)}))
    assert "\n# heading" not in text
    assert "<img" not in text.replace("\\<img", "")
    assert "](http" not in text.replace("\\](http", "")
    assert "a\\|b" in text


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    markdown.write_markdown(profiles.sample_profile(count=20), tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text().startswith("### What ti costs at 224 x 224")
    with pytest.raises(FileNotFoundError):
        markdown.write_markdown(profiles.sample_profile(count=20), tmp_path / "absent" / "a.md")
