"""One profile from beginning to end: load, measure, mix, put into words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, get_args

import numpy as np

from mscope.core.engine import Flavour
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.backends.base import Kernel
from mscope.runtime.backends.registry import BACKENDS, RunnerOptions, choose, choose_variants
from mscope.runtime.profiling.bench import FINE_ONE, ON_HOST, Bench, Progress, identity_of, open_bench, runtime_of
from mscope.runtime.profiling.cold import ColdRequest, cold_start
from mscope.runtime.profiling.exit_rates import accuracy_at, eta_of_rate, rates_from_confidences, rates_from_curve
from mscope.runtime.profiling.expectation import Paths, break_even_rate, expected_at
from mscope.runtime.profiling.machine import describe_machine, load, tool_versions
from mscope.runtime.profiling.measure import Clock, Measured, measure
from mscope.runtime.profiling.options import ProfileOptions
from mscope.runtime.profiling.pictures import Pictures
from mscope.runtime.profiling.power_state import machine_state, throttled_between
from mscope.runtime.profiling.schema import (
    BatchProfile,
    ColdStart,
    ExitRates,
    Expected,
    IdleGap,
    LayerTable,
    Memory,
    PathName,
    PathProfile,
    Power,
    Profile,
    Series,
    Settings,
)
from mscope.runtime.profiling.statistics import series_of
from mscope.runtime.profiling.words import verdict, warnings_about

Sleep = Callable[[float], None]

_MAX_IDLE_REPEATS, _MIN_IDLE_REPEATS = 20, 3


def profile_bundle(
    options: ProfileOptions,
    on_progress: Progress = lambda text, share: None,
    *,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Profile:
    """Measures a bundle on this machine.

    Args:
        options: what to measure.
        on_progress: called with what is being done and the share of it that is over.
        clock, sleep: of the host, seconds.

    Raises:
        InputError: options, folders or pictures that do not do. BundleError, BackendError: as `Scope.load`.
    """
    options.check()
    load_before = load()
    with open_bench(options, clock, on_progress) as (bench, pictures):
        rates = _exit_rates(bench.scope.manifest, pictures, options) if bench.adaptive else ExitRates(source="unknown")
        batches, cool = [], machine_state()
        for batch in options.batches:
            text = f"measuring batch {batch}"
            measured = measure(
                bench.cases(batch),
                options.duration_s,
                clock=clock,
                on_progress=lambda share, text=text: on_progress(text, share),  # type: ignore[misc]
            )
            batches.append(_batch_profile(batch, measured, rates, bench.scope.manifest))
        throttled = throttled_between(cool, machine_state())
        gaps = _idle_gaps(bench, options, sleep, on_progress) if options.idle_gaps_s else None
        layers, notes = _layers(bench, options, on_progress) if options.layers else (None, ())
        power, missing = _power(bench, options, on_progress) if options.power else (None, ())
        fresh = _cold(bench, options, on_progress) if options.cold_starts else (None, None)
        device = None if bench.scope.backend == "ort-cpu" else BACKENDS[bench.scope.backend].probe().device
        profile = Profile(
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            versions=tool_versions(),
            machine=describe_machine(device, load_before, throttled),
            bundle=identity_of(bench.folder, bench.scope.manifest),
            runtime=runtime_of(bench.scope, options),
            compare=None if bench.compare_folder is None or bench.compare is None
            else identity_of(bench.compare_folder, bench.compare.manifest),
            compare_runtime=None if bench.compare is None else runtime_of(bench.compare, options),
            settings=_settings(bench, options, pictures),
            exit_rates=rates,
            batches=tuple(batches),
            idle_gaps=gaps,
            layers=layers,
            power=power,
            cold_start=fresh[0],
            memory=fresh[1],
        )  # fmt: skip
    unread = () if pictures is None else pictures.describe_skipped()
    warnings = (*warnings_about(profile), *notes, *missing, *unread)
    return profile.model_copy(update={"verdict": verdict(profile), "warnings": warnings})


def _exit_rates(manifest: Manifest, pictures: Pictures | None, options: ProfileOptions) -> ExitRates:
    etas = options.etas or (manifest.default_eta,)
    if options.exit_rate is not None:
        return ExitRates(source="given", given=options.exit_rate)
    if pictures is not None and pictures.confidences is not None:
        return rates_from_confidences(pictures.confidences, etas)
    if manifest.eta_curve:
        return rates_from_curve(manifest.eta_curve, etas, options.etas)
    if options.etas:
        raise InputError(
            "--eta: how many images exit at it is not known, the bundle has no curve: give --data with pictures, "
            "or --exit-rate"
        )
    return ExitRates(source="unknown")


def _batch_profile(batch: int, measured: Measured, rates: ExitRates, manifest: Manifest) -> BatchProfile:
    paths_only = [name for name in measured.timings if name != FINE_ONE and name not in ON_HOST]
    profiles = {name: _path_profile(batch, measured, name) for name in paths_only}
    on_host = {name: _path_profile(batch, measured, case) for case, name in ON_HOST.items() if case in measured.timings}
    one = None
    if FINE_ONE in measured.timings:
        one = series_of([timing.total_ms for timing in measured.timings[FINE_ONE]])
    fields: dict[str, Any] = {"batch": batch, "warmup": measured.warmup, "rounds": measured.rounds, "paths": profiles}
    fields |= {"decided_on_host": on_host or None}
    if "refine" not in profiles:
        return BatchProfile(**fields)
    plain, refine = profiles.get("plain"), profiles["refine"]
    # Where the device decides no fine stage can be told apart. For single images nothing is interpolated with it.
    fine = refine.parts.get("fine", refine.total)
    paths = Paths(
        batch,
        np.array(profiles["exit"].total.samples_ms),
        np.array(refine.total.samples_ms),
        np.array(fine.samples_ms),
        None if one is None else one.summary.p50_ms,
        None if plain is None else plain.total.summary.mean_ms,
    )
    rate = break_even_rate(paths)
    expected: list[Expected] = [
        expected_at(paths, exits, eta=eta, accuracy=accuracy_at(manifest.eta_curve, eta)) for eta, exits in rates.points
    ]
    if rates.given is not None:
        expected.append(expected_at(paths, rates.given))
    return BatchProfile(
        **fields,
        fine_one=one,
        expected=tuple(expected),
        expected_by_exit_rate=tuple(expected_at(paths, tenth / 10) for tenth in range(11)),
        break_even_exit_rate=rate,
        break_even_eta=None if rate is None else eta_of_rate(rate, rates.points),
    )


def _path_profile(batch: int, measured: Measured, name: str) -> PathProfile:
    timings = measured.timings[name]

    def series(of: Sequence[Mapping[str, float]], clock: Any = "host") -> dict[str, Series]:
        return {part: series_of([parts.get(part, 0.0) for parts in of], clock) for part in of[0]}

    total = series_of([timing.total_ms for timing in timings])
    parts = series([timing.parts_ms for timing in timings])
    on_device = [timing.device_ms for timing in timings if timing.device_ms is not None]
    in_all = [timing.device_total_ms for timing in timings if timing.device_total_ms is not None]
    device_parts = device_total = None
    if len(on_device) == len(in_all) == len(timings):
        device_parts, device_total = series(on_device, "device"), series_of(in_all, "device")
    mean = total.summary.mean_ms
    return PathProfile(
        total=total,
        parts=parts,
        device_parts=device_parts,
        device_total=device_total,
        split_gap=_gap(parts, total),
        device_gap=None if device_parts is None or device_total is None else _gap(device_parts, device_total),
        images_per_second=batch / mean * 1e3 if mean > 0 else 0.0,
    )


def _gap(parts: Mapping[str, Series], total: Series) -> float:
    """By how much the parts miss the total, as a share of it."""
    mean = total.summary.mean_ms
    return abs(sum(part.summary.mean_ms for part in parts.values()) - mean) / mean if mean > 0 else 0.0


def _idle_gaps(bench: Bench, options: ProfileOptions, sleep: Sleep, on_progress: Progress) -> tuple[IdleGap, ...]:
    longest: PathName = "refine" if bench.adaptive else "plain"
    case = bench.work.path(longest, 1)
    case()
    sections = []
    for gap in (0.0, *sorted(options.idle_gaps_s)):
        affordable = int(options.duration_s / gap / 2) if gap else _MAX_IDLE_REPEATS
        repeats = max(_MIN_IDLE_REPEATS, min(_MAX_IDLE_REPEATS, affordable))
        times = []
        for done in range(repeats):
            on_progress(f"pausing {gap:g} s", done / repeats)
            if gap:
                sleep(gap)
            times.append(case().total_ms)
        sections.append(IdleGap(gap_s=gap, total=series_of(times)))
    return tuple(sections)


def _layers(
    bench: Bench, options: ProfileOptions, on_progress: Progress
) -> tuple[tuple[LayerTable, ...] | None, tuple[str, ...]]:
    scope = bench.scope
    if scope.backend == "ort-cuda":
        return None, ("--layers reads the profilers of ort-cpu and of TensorRT; ort-cuda was not taken apart",)
    on_progress("taking the graphs apart", 0.0)
    batch = options.batches[0]
    tensors = [scope.preprocess(bench.work.images[i % len(bench.work.images)]) for i in range(batch)]
    if scope.backend in get_args(Flavour):
        from mscope.runtime.profiling.engine_layers import engine_layer_tables

        chosen = choose(scope.manifest, bench.folder, scope.backend, scope.precision, RunnerOptions())
        flavour: Flavour = "tensorrt" if scope.backend == "tensorrt" else "tensorrt-rtx"
        image = scope.stack(tensors)
        return engine_layer_tables(bench.folder, scope.manifest, chosen.variants, image, flavour=flavour), ()
    from mscope.runtime.profiling.ort_layers import ort_layer_tables

    _, variants = choose_variants(scope.manifest, BACKENDS[scope.backend], scope.precision)
    kernel: Kernel = "native" if scope.kernel == "native" else "function"
    tables = ort_layer_tables(
        bench.folder, scope.manifest, variants, scope.stack(tensors), threads=options.threads, kernel=kernel
    )
    return tables, ()


def _power(bench: Bench, options: ProfileOptions, on_progress: Progress) -> tuple[Power | None, tuple[str, ...]]:
    from mscope.runtime.profiling.power import measure_power

    on_progress("measuring power", 0.0)
    loads = {(name, batch): work.load(name, batch) for batch in options.batches for name, work in bench.paths().items()}
    power: tuple[Power | None, tuple[str, ...]] = measure_power(loads, options.duration_s)
    return power


def _cold(bench: Bench, options: ProfileOptions, on_progress: Progress) -> tuple[ColdStart, Memory]:
    on_progress("starting fresh processes", 0.0)
    request = ColdRequest(
        bundle=str(bench.folder.absolute()),
        backend=bench.scope.backend,
        precision=bench.scope.precision,
        kernel=options.kernel,
        threads=options.threads,
        batch=max(options.batches),
        preprocess=options.preprocess,
        decide=options.decide,
    )
    return cold_start(request, options.cold_starts)


def _settings(bench: Bench, options: ProfileOptions, pictures: Pictures | None) -> Settings:
    default = (bench.scope.manifest.default_eta,) if bench.adaptive else ()
    return Settings(
        duration_s=options.duration_s,
        batches=options.batches,
        etas=options.etas or default,
        input="synthetic" if pictures is None else "data",
        images=None if pictures is None else pictures.count,
    )
