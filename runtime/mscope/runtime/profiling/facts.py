"""What reports state of a profile beside its figures: a headline, the few numbers that matter, where they are from."""

from __future__ import annotations

from mscope.runtime.profiling.schema import Power, Profile
from mscope.runtime.profiling.words import image_on


def headline(profile: Profile) -> str:
    """The report's title."""
    bundle = profile.bundle
    height, width = bundle.resolution
    name = bundle.name if bundle.name == bundle.size else f"{bundle.name} ({bundle.size})"
    return f"What {name} costs at {height} x {width}"


def tiles(profile: Profile) -> list[tuple[str, str, str]]:
    """Name, value, note of the numbers to see first: of the smallest batch size."""
    batch = min(profile.batches, key=lambda entry: entry.batch)
    found = []
    for name, path in batch.paths.items():
        s = path.total.summary
        found.append((image_on(profile, name), f"{s.p50_ms:.2f} ms", f"p99 {s.p99_ms:.2f} ms, batch {batch.batch}"))
    rate = batch.break_even_exit_rate
    if rate is not None:
        value = "always" if rate <= 0 else "never" if rate > 1 else f"> {rate:.0%}"
        note = "" if rate <= 0 or rate > 1 else "of the images must exit early"
        found.append(("adaptivity pays", value, note))
    if profile.cold_start is not None:
        found.append(("cold start", f"{profile.cold_start.total_p50_ms:.0f} ms", "new process to first answer"))
    if profile.memory is not None and profile.memory.peak_bytes is not None:
        found.append(("peak memory", f"{profile.memory.peak_bytes / 2**20:.0f} MiB", f"batch {profile.memory.batch}"))
    return found


def power_lines(power: Power) -> list[str]:
    """What the energy figures depend on, a line each; what the machine does not tell is left out."""
    found = [f"Total: {power.total}."]
    if power.idle_watts is not None:
        found.append(f"Idle: {power.idle_watts:.2f} W.")
    if power.mode:
        found.append(f"Power mode: {power.mode}.")
    if power.clocks_pinned is not None:
        found.append(f"Clocks held by jetson_clocks: {'yes' if power.clocks_pinned else 'no'}.")
    if power.throttled is not None:
        found.append(f"Throttled meanwhile: {'yes' if power.throttled else 'no'}.")
    for words, values, unit in (("Highest", power.temperature_c, "°C"), ("Mean clocks", power.clocks_mhz, "MHz")):
        if values:
            found.append(f"{words}: " + ", ".join(f"{name} {value:.0f} {unit}" for name, value in values.items()) + ".")
    return [*found, *power.notes]


def facts(profile: Profile) -> list[tuple[str, str]]:
    """Everything that the numbers depend on, as rows of a table."""
    bundle, machine, runtime, settings = profile.bundle, profile.machine, profile.runtime, profile.settings
    threads = "its own choice" if runtime.threads is None else str(runtime.threads)
    found = [
        ("bundle", f"{bundle.name}, {bundle.arch} {bundle.size}, manifest {bundle.manifest_sha256[:12]}"),
        ("weights", bundle.weights if bundle.trained else f"{bundle.weights}: untrained"),
        ("GMACs", ", ".join(f"{name} {value:.3g}" for name, value in bundle.gmacs.items())),
    ]
    if bundle.alpha is not None:
        found.append(("alpha", f"{bundle.alpha:g}"))
    if profile.compare is not None:
        found.append(("compared with", f"{profile.compare.name}, manifest {profile.compare.manifest_sha256[:12]}"))
    found += [
        ("backend", f"{runtime.backend}, {runtime.precision}, {runtime.kernel} kernels, threads: {threads}"),
        ("processor", f"{machine.cpu}, {machine.cores} cores"),
    ]
    if runtime.decide == "device":
        found.append(("exit decided", "on the device; beside it, in turn, on the host"))
    if machine.device:
        found.append(("device", machine.device))
    if machine.memory_bytes:
        found.append(("memory of the machine", f"{machine.memory_bytes / 2**30:.1f} GiB"))
    mode = machine.power_mode or (profile.power.mode if profile.power else None)
    if mode:
        found.append(("power mode", mode))
    if machine.load_before is not None:
        after = "" if machine.load_after is None else f", {machine.load_after:.2f} after"
        found.append(("load of the machine", f"{machine.load_before:.2f} before{after}"))
    if machine.throttled is not None:
        found.append(("throttled meanwhile", ", ".join(machine.throttled) or "no"))
    found += [
        ("system", f"{machine.system}, {machine.architecture}"),
        ("measured for", f"{settings.duration_s:g} s"),
        ("rounds", ", ".join(f"{batch.rounds} at batch {batch.batch}" for batch in profile.batches)),
        ("input", f"{settings.images} pictures" if settings.images else settings.input),
        ("exit rates from", profile.exit_rates.source),
        ("clock", "host, unless a row says device"),
        ("versions", ", ".join(f"{name} {version}" for name, version in profile.versions.items())),
        ("when", profile.created),
    ]
    return found
