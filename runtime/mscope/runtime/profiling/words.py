"""A profile in plain words: what it means, and what makes it doubtful."""

from __future__ import annotations

from statistics import median

from mscope.runtime.profiling.schema import BatchProfile, ExitRates, Expected, PathName, PathProfile, Profile

# Beyond these a reader is warned.
SCATTER = 0.1
SPLIT_GAP = 0.02
P99_SAMPLES = 100
BUSY_LOAD = 0.5
SLOWED = 1.5
# Every path slower by this from the first third of the run to the last, of as many rounds or more.
SLOWING, SLOWING_ROUNDS = 0.1, 30
_COMPARE = (
    "whether adaptivity pays shows beside plain ViM: build that with 'mscope-export build --arch vim', --compare it"
)
_SOURCES = {
    "data": "of the pictures given leave early",
    "curve": "leave early by the bundle's curve",
    "given": "leave early, as given",
}


def verdict(profile: Profile) -> tuple[str, ...]:
    """Lines that answer: what does an image cost, does adaptivity pay here, from where on would it lose."""
    lines: list[str] = []
    for batch in profile.batches:
        lines += [_costs(profile, batch), *_decided(batch), *_pays(profile, batch)]
    return tuple(lines)


def path_words(profile: Profile) -> dict[PathName, str]:
    """What a table calls the paths of an image."""
    return {"exit": "leaves early", "refine": "is refined", "plain": profile.bundle.reduced or "plain ViM"}


def image_on(profile: Profile, path: PathName) -> str:
    """An image on a path, such as "an image that leaves early"; of a ViM only its name."""
    words = path_words(profile)[path]
    return words if path == "plain" else f"an image that {words}"


def percent(share: float) -> str:
    """A share as "41 %"."""
    return f"{share * 100:.0f} %"


def _costs(profile: Profile, batch: BatchProfile) -> str:
    per = f"batch {batch.batch}: " if batch.batch > 1 else ""
    told = []
    words = path_words(profile)
    texts = {"exit": f"an image that {words['exit']} takes", "refine": f"one that {words['refine']}"}
    for name in words:
        path, text = batch.paths.get(name), texts.get(name, words[name])
        if path is not None:
            told.append(f"{text} {path.total.summary.p50_ms / batch.batch:.3g} ms")
    return per + ", ".join(told) + " (median)"


def _decided(batch: BatchProfile) -> list[str]:
    """What deciding on the device changes, where both were measured."""
    if batch.decided_on_host is None:
        return []
    told = []
    for name, image in (("exit", "an image that leaves early takes"), ("refine", "one that is refined")):
        here, there = (of[name].total.summary.p50_ms for of in (batch.paths, batch.decided_on_host))  # type: ignore[index]
        share = here / there - 1.0 if there > 0.0 else 0.0
        told.append(f"{image} {percent(abs(share))} {'more' if share > 0.0 else 'less'}")
    return [f"with the exit decided on the device {', '.join(told)} time than decided on the host (medians, in turn)"]


def table_rows(profile: Profile, batch: BatchProfile) -> list[tuple[str, PathName | None, PathProfile]]:
    """What a table of latencies has: every path, then, of no name, those decided on the host beside the device's."""
    words, on_host = path_words(profile), batch.decided_on_host or {}
    return [
        *((words[name], name, path) for name, path in batch.paths.items()),
        *((f"{words[name]}, decided on the host", None, path) for name, path in on_host.items()),
    ]


def _pays(profile: Profile, batch: BatchProfile) -> list[str]:
    if profile.bundle.arch == "vim":
        return []
    per = f" in batches of {batch.batch}" if batch.batch > 1 else ""
    if profile.compare is None:
        return [_COMPARE] if batch is profile.batches[0] else []
    rate = batch.break_even_exit_rate
    if rate is None:
        return [f"on this machine{per} the fine stage costs too little to tell when adaptivity pays"]
    if rate <= 0.0:
        always = "even an image that is refined takes no longer than plain ViM: adaptivity pays at every eta"
        return [*_savings(profile, batch, per), f"on this machine{per} {always}"]
    if rate > 1.0:
        never = "even an image that leaves early takes longer than plain ViM: adaptivity does not pay at any eta"
        return [*_savings(profile, batch, per), f"on this machine{per} {never}"]
    limit = _limit(profile.exit_rates, batch, rate)
    return [*_savings(profile, batch, per), f"on this machine{per} {limit}"]


def _savings(profile: Profile, batch: BatchProfile, per: str) -> list[str]:
    lines = []
    for expected in told_about(profile, batch):
        saving = expected.saving
        if saving is None:
            continue
        outcome = f"saves {percent(saving)}" if saving >= 0 else f"costs {percent(-saving)} more than plain ViM"
        at = "" if expected.eta is None else f" at eta {expected.eta:g}"
        source = _SOURCES.get(profile.exit_rates.source, "leave early")
        lines.append(
            f"on this machine{per} adaptive {outcome}{at}: {percent(expected.exit_rate)} {source}, "
            f"{expected.mean_ms / batch.batch:.3g} ms an image on average, p99 {expected.p99_ms:.3g} ms"
            f"{' a batch' if batch.batch > 1 else ''}"
        )
    return lines


def _limit(rates: ExitRates, batch: BatchProfile, rate: float) -> str:
    if rates.source in ("given", "unknown") or not rates.points:
        unknown = "" if rates.source == "given" else "; how many do is not known: give --data or --exit-rate"
        return f"adaptive pays if more than {percent(rate)} of the images leave early{unknown}"
    if batch.break_even_eta is not None:
        return f"it would lose above eta {batch.break_even_eta:.3g} (fewer than {percent(rate)} leave early there)"
    if rates.points[-1][1] > rate:
        return f"it pays at every eta looked at, up to {rates.points[-1][0]:g}"
    return f"it loses at every eta looked at, from {rates.points[0][0]:g}: fewer than {percent(rate)} leave early"


def told_about(profile: Profile, batch: BatchProfile) -> list[Expected]:
    """The operating points that were asked for, or the bundle's default; all there is with --exit-rate."""
    if profile.exit_rates.source == "given":
        return list(batch.expected)
    wanted = profile.settings.etas
    return [expected for expected in batch.expected if expected.eta in wanted]


def warnings_about(profile: Profile) -> tuple[str, ...]:
    """What a reader should know before trusting the figures."""
    lines: list[str] = []
    machine = profile.machine
    if not profile.bundle.trained:
        lines.append("the weights are untrained: latencies mean something, confidences and exit rates do not")
    if profile.compare is not None:
        lines += _differences(profile)
    if machine.load_before is not None and machine.load_before > BUSY_LOAD * machine.cores:
        lines.append(
            f"the machine was busy before the run (load {machine.load_before:g} on {machine.cores} cores): "
            "end other programs and measure again"
        )
    if machine.throttled:
        lines.append(
            f"the machine throttled while it was measured ({', '.join(machine.throttled)}): the figures are those of a "
            "slowed machine; cool it, or choose a lower power mode"
        )
    for batch in profile.batches:
        lines += _doubts(batch)
    lines += _distortions(profile)
    if profile.settings.input == "synthetic":
        lines.append(
            "measured on a made-up picture, already decoded and of about the network's size: --data takes yours"
        )
    return tuple(lines)


def _distortions(profile: Profile) -> list[str]:
    lines = []
    for table in profile.layers or ():
        path = "plain" if table.stage == "full" else "refine"
        batch = next((batch for batch in profile.batches if batch.batch == table.batch), None)
        measured = batch.paths.get(path) if batch is not None else None  # type: ignore[call-overload]
        part = None if measured is None else measured.parts.get(table.stage)
        if part is not None and table.stage_ms > SLOWED * part.summary.p50_ms > 0.0:
            lines.append(
                f"the profiler slows {table.stage} down {table.stage_ms / part.summary.p50_ms:.1f} times: of its nodes "
                "those with many steps inside, such as Scan, look dearer than they are"
            )
    return lines


def _differences(profile: Profile) -> list[str]:
    ours, plain = profile.bundle, profile.compare
    assert plain is not None
    lines = []
    for name, a, b in (
        ("size", ours.size, plain.size),
        ("resolution", "x".join(map(str, ours.resolution)), "x".join(map(str, plain.resolution))),
        *(
            (field, getattr(profile.runtime, field), getattr(profile.compare_runtime, field))
            for field in ("backend", "kernel", "precision")
        ),
    ):
        if a != b:
            lines.append(f"different {name}s are compared: {a} (adaptive) and {b} (plain ViM)")
    return lines


def _doubts(batch: BatchProfile) -> list[str]:
    lines = []
    at = f"batch {batch.batch}"
    if not batch.warmup.steady:
        lines.append(
            f"{at}: latencies had not settled after {batch.warmup.rounds} rounds of warm-up: use a longer --duration"
        )
    scatter = {name: path.total.summary.cv for name, path in batch.paths.items()}
    if max(scatter.values()) > SCATTER:
        told = ", ".join(f"{name} {percent(cv)}" for name, cv in scatter.items())
        lines.append(
            f"{at}: the latencies scatter (coefficient of variation {told}): end other programs, fix the clocks"
        )
    slower = _slower(batch)
    if slower > SLOWING:
        lines.append(
            f"{at}: every path became slower over the run, by {percent(slower)} or more from first to last third: "
            "the machine throttles as it gets warm, or other programs began"
        )
    for name, path in batch.paths.items():
        if path.split_gap > SPLIT_GAP:
            lines.append(f"{at}, {name}: the parts miss the total by {path.split_gap * 100:.1f} %")
        if path.device_gap is not None and path.device_gap > SPLIT_GAP:
            lines.append(f"{at}, {name}: the device's parts miss its total by {path.device_gap * 100:.1f} %")
    count = min(path.total.summary.count for path in batch.paths.values())
    if count < P99_SAMPLES:
        lines.append(f"{at}: p99 of {count} samples is little else than the maximum: use a longer --duration")
    return lines


def _slower(batch: BatchProfile) -> float:
    """By what share every path's median rose from the first third of the rounds to the last; 0 of too few rounds."""
    if batch.rounds < SLOWING_ROUNDS:
        return 0.0
    third = batch.rounds // 3
    thirds = [
        (median(path.total.samples_ms[:third]), median(path.total.samples_ms[-third:])) for path in batch.paths.values()
    ]
    return min(last / first - 1.0 if first > 0.0 else 0.0 for first, last in thirds)
