"""Two profiles compared: the tests against scipy and by simulation, the conditions, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer

import profiles
from mscope.core.console import run_app
from mscope.core.errors import InputError
from mscope.runtime.profiling.diff import compare, parse_condition
from mscope.runtime.profiling.diff_cli import diff
from mscope.runtime.profiling.diff_runs import between_runs
from mscope.runtime.profiling.diff_statistics import Change, changes_of, mann_whitney_p
from mscope.runtime.profiling.schema import Memory, PathEnergy, Power, Profile

Floats = npt.NDArray[np.float64]


def change_of(name: str, before: Floats, after: Floats, seed: int = 0) -> Change | None:
    return changes_of([name], before, after, seed).get(name)


def lognormal(median: float, count: int, seed: int) -> Floats:
    return profiles.skewed(median, count, np.random.default_rng(seed))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes, shift", [((8, 9), 0.0), ((50, 30), 0.3), ((200, 400), 0.05), ((500, 500), 1.0)])
def test_mann_whitney_against_scipy(sizes: tuple[int, int], shift: float, ties: bool) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy, which scikit-learn brings, is the oracle")
    rng = np.random.default_rng(sizes[0])
    first, second = rng.lognormal(0, 1, sizes[0]), rng.lognormal(0, 1, sizes[1]) + shift
    if ties:
        first, second = np.round(first, 1), np.round(second, 1)
    expected = stats.mannwhitneyu(first, second, method="asymptotic", use_continuity=True).pvalue
    assert mann_whitney_p(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mann_whitney_of_constants() -> None:
    assert mann_whitney_p(np.full(10, 3.0), np.full(10, 3.0)) == 1.0


@pytest.mark.parametrize("name", ["mean", "p50", "p95"])
def test_the_interval_holds_the_true_change(name: str) -> None:
    missed = 0
    for seed in range(60):
        found = change_of(name, lognormal(10.0, 300, seed), 1.1 * lognormal(10.0, 300, 1000 + seed), seed)
        assert found is not None
        missed += not found.low <= 0.1 <= found.high
    # 5 % of 60 would be 3; a bootstrap of a quantile is a little narrow. At 7 % more than 10 has probability 1e-3.
    assert missed <= 10


def test_drift_is_not_taken_for_precision() -> None:
    """Samples that wander together: resampling one by one would call every difference significant."""
    rng = np.random.default_rng(0)

    def wandering() -> Floats:
        slow = np.repeat(rng.normal(0, 1, 30), 10)
        return np.asarray(20.0 + slow + rng.normal(0, 0.1, 300), np.float64)

    found = [change_of("mean", wandering(), wandering(), seed) for seed in range(60)]
    wrong = sum(change is not None and change.significant for change in found)
    # One by one it would be wrong in over half of the pairs (the means' true spread is three times what it seems).
    assert wrong <= 20


def test_too_few_samples_give_no_change() -> None:
    few = lognormal(10.0, 99, 0)
    assert change_of("p99", few, few) is None
    assert change_of("p50", few[:7], few) is None
    assert change_of("p50", few[:8], few) is not None
    # A quantile q of fewer than 1 / (1 - q) samples is only the largest of them.
    for name, needed in (("p90", 10), ("p95", 20), ("p99", 100)):
        samples = lognormal(10.0, needed, 1)
        assert change_of(name, samples, samples) is not None
        assert change_of(name, samples, samples[1:]) is None
        assert change_of(name, samples[1:], samples) is None
    assert changes_of([], few, few) == {}


def test_nothing_is_relative_to_no_time() -> None:
    some = lognormal(10.0, 20, 0)
    assert changes_of(["mean", "p50"], np.r_[0.0, some], some) == {}
    assert changes_of(["mean", "p50"], some, np.r_[0.0, some]).keys() == {"mean", "p50"}


def test_the_same_profile_does_not_differ() -> None:
    profile = profiles.sample_profile()
    found = compare(profile, profile)
    assert found.differences == ()
    for series in found.series:
        assert series.p == 1.0
        for change in series.changes.values():
            assert change.relative == 0.0
            assert not change.significant
    assert found.peak_memory == 0.0
    assert {series.part for series in found.series if series.path == "refine"} == {"total", *profiles.PARTS["refine"]}


def test_a_slower_run_is_found_and_gated() -> None:
    before, after = profiles.sample_profile(seed=1), profiles.sample_profile(seed=2, slower=1.2)
    conditions = [parse_condition(text) for text in ("p50>+10%", "p50>+30%", "throughput<-10%", "exit.mean>+5%")]
    found = compare(before, after, conditions)
    totals = [series for series in found.series if series.part == "total"]
    assert len(totals) == 6
    for series in totals:
        change = series.changes["p50"]
        assert change.significant
        assert change.low < 0.2 < change.high
        assert series.p is not None
        assert series.p < 1e-6
    assert [entry.condition for entry in found.exceeded] == ["p50>+10%"] * 6 + ["throughput<-10%"] * 6 + [
        "exit.mean>+5%"
    ] * 2
    for entry in found.exceeded:
        if entry.condition.startswith("throughput"):
            assert entry.change == pytest.approx(1 / 1.2 - 1, abs=0.03)


def test_a_change_within_the_noise_does_not_fail() -> None:
    """p99 of 200 skewed samples jumps by some per cent from run to run: beyond the limit is not enough."""
    before = profiles.sample_profile(seed=1)
    for seed in range(2, 30):
        after = profiles.sample_profile(seed=seed)
        change = compare(before, after).series[0].changes["p99"]
        if change.relative > 0.03 and not change.significant:
            assert compare(before, after, [parse_condition("exit.p99>+3%")]).exceeded == () or change.significant
            return
    raise AssertionError("no seed gives an insignificant jump: the case is not tested")


def with_power(profile: Profile, joules: float, error: float) -> Profile:
    path = PathEnergy(
        path="refine", batch=1, images=10, seconds=1.0, readings=10, watts=5.0, joules_per_image=joules,
        uncertainty_joules_per_image=error,
    )  # fmt: skip
    power = Power(sensor="rapl", total="package-0", idle_watts=1.0, rails={}, paths=(path,))
    return profile.model_copy(update={"power": power})


def test_energy_and_memory() -> None:
    profile = profiles.sample_profile()
    a = with_power(profile, 0.10, 0.001)
    b = with_power(profile, 0.12, 0.001).model_copy(
        update={"memory": Memory(batch=8, loaded_bytes=1, peak_bytes=420 << 20)}
    )
    found = compare(
        a, b, [parse_condition("energy>+5%"), parse_condition("memory>+50%"), parse_condition("energy<-5%")]
    )
    assert [entry.condition for entry in found.exceeded] == ["energy>+5%", "memory>+50%"]
    assert found.peak_memory == 1.0
    assert found.energy[(1, "refine")].relative == pytest.approx(0.2)
    unsure = compare(with_power(profile, 0.10, 0.02), b, [parse_condition("energy>+5%")])
    assert unsure.exceeded == ()


@pytest.mark.parametrize(
    "text", ["p99", "p99>5", "p98>+5%", "p99=+5%", "cat.p99>+5%", "p99>+5%;p50>+1%", "p99>-5%", "p99<+5%", ""]
)
def test_conditions_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="condition"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["p99 > 5%", "p99>+5%", " refine.p99>+5.5% ", "p50<-10%"])
def test_conditions_that_are_ones(text: str) -> None:
    assert parse_condition(text).text == text.strip()


def test_conditions_that_cannot_be_answered_are_errors() -> None:
    few = profiles.sample_profile(count=50)
    with pytest.raises(InputError, match="p99 needs 100 samples"):
        compare(few, few, [parse_condition("p99>+5%")])
    with pytest.raises(InputError, match="no energy"):
        compare(few, few, [parse_condition("energy>+5%")])
    bare = few.model_copy(update={"memory": None})
    with pytest.raises(InputError, match="no peak memory"):
        compare(bare, few, [parse_condition("memory>+5%")])


@pytest.mark.parametrize("field, value", [("size", "s"), ("alpha", 0.7), ("resolution", (256, 256))])
def test_other_models_are_refused(field: str, value: Any) -> None:
    a = profiles.sample_profile(count=20)
    b = a.model_copy(update={"bundle": a.bundle.model_copy(update={field: value})})
    with pytest.raises(InputError, match=rf"not comparable: {field} .*--force"):
        compare(a, b)
    assert any(line.startswith(field) for line in compare(a, b, force=True).differences)


def test_other_threads_and_batches_are_refused() -> None:
    a = profiles.sample_profile(count=20)
    with pytest.raises(InputError, match="threads 2 and 4"):
        compare(a, a.model_copy(update={"runtime": a.runtime.model_copy(update={"threads": 4})}))
    with pytest.raises(InputError, match="batches"):
        compare(a, a.model_copy(update={"batches": a.batches[:1]}))
    lone = a.model_copy(update={"batches": a.batches[:1]})
    other = a.model_copy(update={"batches": a.batches[1:]})
    with pytest.raises(InputError, match="no path"):
        compare(lone, other, force=True)


def app() -> typer.Typer:
    typed = typer.Typer()
    typed.command()(diff)
    return typed


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(profiles.sample_profile(seed=1).to_json())
    b.write_text(profiles.sample_profile(seed=2, slower=1.2).to_json())
    assert run_app(app(), [str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "doubtful: A: the latencies scatter" in shown
    assert "refine, batch 1 (200 and 200 samples)" in shown
    assert "*" in shown
    assert run_app(app(), [str(a), str(b), "--fail-if", "p50>+5%", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exceeded"][0]["condition"] == "p50>+5%"
    assert "p50>+5% exceeded: exit, batch 1 changed by +1" in captured.err
    assert run_app(app(), [str(b), str(a), "--fail-if", "p50>+5%"]) == 0
    assert run_app(app(), [str(a), str(b), "--fail-if", "p50"]) == 2
    assert run_app(app(), [str(a), str(tmp_path / "absent.json")]) == 2
    b.write_text('{"schema_version": 1}')
    assert run_app(app(), [str(a), str(b)]) == 2


def test_the_quantiles_are_numpy_s() -> None:
    before, after = lognormal(10.0, 333, 0), lognormal(11.0, 250, 1)
    for name, found in changes_of(["p50", "p90", "p95", "p99"], before, after).items():
        share = int(name[1:]) / 100
        assert found.before == pytest.approx(float(np.quantile(before, share)), rel=1e-12)
        assert found.after == pytest.approx(float(np.quantile(after, share)), rel=1e-12)


def runs_of(sizes: list[float]) -> list[Profile]:
    """Profiles of one program whose runs are slower or faster as wholes."""
    return [profiles.sample_profile(seed=n, slower=slower) for n, slower in enumerate(sizes)]


def test_what_runs_differ_by_among_themselves_fails_no_condition() -> None:
    first, *again = runs_of([1.0, 1.1, 0.93, 1.05, 0.97])
    slower = profiles.sample_profile(seed=9, slower=1.12)
    condition = [parse_condition("p50>+3%"), parse_condition("throughput<-3%")]
    # Beyond doubt by the samples of two runs; nothing by what runs do.
    assert {entry.condition for entry in compare(first, slower, condition).exceeded} == {"p50>+3%", "throughput<-3%"}
    assert compare(first, slower, condition, again=again).exceeded == ()
    much = profiles.sample_profile(seed=9, slower=1.5)
    assert len(compare(first, much, condition, again=again).exceeded) == 12  # three paths, two batches, two conditions


def test_the_interval_of_a_further_run_is_student_s() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy, which scikit-learn brings, is the oracle")
    for count in range(3, 14):
        runs = runs_of(list(np.random.default_rng(count).lognormal(0, 0.05, count)))
        (entry,) = [
            entry
            for entry in between_runs(runs[0], runs[1:])
            if (entry.batch, entry.path, entry.metric) == (1, "exit", "p50")
        ]
        logs = np.log([run.batches[0].paths["exit"].total.summary.p50_ms for run in runs])
        # The table ends at ten degrees of freedom.
        t = stats.t.ppf(0.975, min(count - 1, 10))
        half = t * logs.std(ddof=1) * np.sqrt(1 + 1 / count)
        ends = np.exp(logs.mean() + np.array([-half, half]) - logs[0]) - 1
        assert (entry.low, entry.high) == pytest.approx(tuple(ends), rel=1e-3)
        assert entry.runs == count


def test_too_few_runs_or_runs_of_something_else() -> None:
    first, second, third = runs_of([1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="two more runs"):
        compare(first, second, again=[third])
    other = third.model_copy(update={"runtime": third.runtime.model_copy(update={"precision": "fp16"})})
    with pytest.raises(InputError, match="further runs of A"):
        compare(first, second, again=[third, other])


def test_the_command_shows_how_runs_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()
    app.command()(diff)
    names = []
    for number, profile in enumerate(runs_of([1.0, 1.1, 0.9, 1.02])):
        (tmp_path / f"{number}.json").write_text(profile.to_json())
        names.append(str(tmp_path / f"{number}.json"))
    assert run_app(app, names[:2]) == 0
    assert "--again and more runs of A" in capsys.readouterr().out
    more = [word for name in names[2:] for word in ("--again", name)]
    assert run_app(app, [*names[:2], *more, "--fail-if", "p50>+3%"]) == 0
    assert "a further run of A, by 3 of them, lies 19 of 20 times within" in capsys.readouterr().out
    assert run_app(app, [*names[:2], *more, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["between_runs"]) == 30  # 6 paths, 5 statistics
