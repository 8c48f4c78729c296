"""What is aimed at, beside what was measured: the figures of a report against their limits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import spaces

Figures = dict[str, Any]

FEW, MANY = 100, 10_000  # listeners whose codec cost is to be the same
NO_PART = "not part of this run"


def nothing(reason: str) -> Figures:
    """In place of figures that there are not."""
    return {"valid": False, "reason": reason}


@dataclass(frozen=True, slots=True)
class Asked:
    """One figure that is aimed at.  measured_in: the figures of one part; key: which of them, with
    the key within it after a blank.  sign, limit and unit: < 0.1 %; scale: from the key's unit."""

    what: str
    measured_in: Figures
    key: str
    sign: str
    limit: float
    unit: str = ""
    scale: float = 1.0

    def row(self) -> Figures:
        figures = self.measured_in
        value: Any = figures
        for key in self.key.split():
            value = value.get(key) if isinstance(value, dict) else None
        measured = None if value is None else round(float(value) * self.scale, 6)
        valid = measured is not None and bool(figures.get("valid", True))
        reason = figures.get("reason") or ("" if valid else "there is no such figure in this run")
        return {
            "what": self.what,
            "sign": self.sign,
            "limit": self.limit,
            "unit": self.unit,
            "measured": measured,
            "met": _met(measured, self.sign, self.limit) if valid else None,
            "valid": valid,
            "reason": reason,
        }


def _met(measured: float | None, sign: str, limit: float) -> bool | None:
    if measured is None:
        return None
    return {
        "<=": measured <= limit,
        "<": measured < limit,
        ">=": measured >= limit,
        ">": measured > limit,
    }[sign]


def asked(report: Figures) -> Iterator[Asked]:
    """report: what report.json holds."""

    def at(listeners: int, talkers: int = 1, packet_ms: int = 20, cores: int = 1) -> Figures:
        return _row(
            report["capacity"],
            listeners=listeners,
            talkers=talkers,
            packet_ms=packet_ms,
            server_cores=cores,
        )

    def beside(peer: str, talkers: int) -> Figures:
        rows = report["peers"].get("rows", ())
        reason = report["peers"].get("reason", NO_PART)
        return _row(rows, reason, peer=peer, talkers=talkers)

    late, lost, share = "tick_lateness_ms p99", "loss", 100.0
    for listeners in (2_000, 3_000):
        what = f"CPU a packet, times the floor: {listeners:,} listeners, 1 talker, 20 ms"
        yield Asked(what, at(listeners), "ratio_to_floor", "<=", 1.6)
    for peer, talkers, sign, times in (
        ("mumble", 1, ">=", 3),
        ("mumble", 4, ">=", 9),
        *(("janus-srtp", talkers, ">=", 4) for talkers in (1, 4)),
        *(("janus-forward", talkers, ">", 1) for talkers in (1, 4)),
        *(("janus-audiobridge", talkers, ">=", 40) for talkers in (1, 4)),
    ):
        what = f"listeners a core, times those of {peer}: {talkers} talking"
        row = beside(peer, talkers)
        yield Asked(f"{what}, 20 ms packets", row, "times_fewer", sign, times)
        yield Asked(f"{what}, as a crowd", row, "times_fewer_in_crowd", sign, times)
    few, many = at(FEW), at(MANY, packet_ms=60, cores=2)
    what = f"encodes a tick with {MANY:,} listeners, no more than with {FEW:,}"
    codec = many if "encodes_per_tick" in few else few
    limit = round(few.get("encodes_per_tick", 1.0), 2)
    yield Asked(what, codec, "encodes_per_tick", "<=", limit)
    what = f"{MANY:,} listeners, 60 ms packets, two cores shared with the generator"
    yield Asked(f"{what}: loss", many, lost, "<", 0.1, "%", share)
    yield Asked(f"{what}: tick lateness p99", many, late, "<", 5, "ms")
    yield Asked(
        f"{what}: memory for each", many, "rss_bytes_per_listener", "<=", 12 * 1024, "bytes"
    )
    stage = at(500, talkers=13)
    yield Asked("13 talk, 500 listen: encodes a tick", stage, "encodes_per_tick", "<=", 14)
    yield Asked("13 talk, 500 listen: tick lateness p99", stage, late, "<", 5, "ms")
    quick = report["quick"]  # so few say nothing about as many as are asked for
    too_little = nothing("not part of a quick run")
    tick = too_little if quick else report["tick"]
    what = "the playout buffer's work for one source, at each tick"
    yield Asked(what, tick, "phases buffer median_us", "<=", 60, "µs")
    silent = too_little if quick else report["silent"]
    what = f"{spaces.SILENT_SPACES:,} silent spaces of {spaces.PEOPLE}"
    yield Asked(f"{what}: encodes", silent, "encodes", "<=", 0)
    yield Asked(f"{what}: audio packets", silent, "audio_packets", "<=", 0)
    what = f"{what}: CPU of a core, beyond keep-alives"
    yield Asked(what, silent, "cpu_share", "<", 0.05, "%", share)
    for listeners in (FEW, 1_000):
        storm = _row([] if quick else report["joins"], listeners=listeners)
        what = f"joins, while {listeners:,} listen"
        yield Asked(f"{what}: a second", storm, "joins_per_second", ">=", 1_000)
        yield Asked(f"{what}: their extra loss", storm, "extra_loss", "<", 0.1, "%", share)
    for frame_ms, key, most_ms in (
        (20, "server_added_ms mean", 20),
        (20, "server_added_ms p99", 32),
        (20, "mouth_to_ear_ms p50", 65),
        (10, "mouth_to_ear_ms p50", 45),
    ):
        delays = _row(report["latency"], frame_ms=frame_ms)
        way, figure = key.split("_ms ")
        what = f"{way.replace('_', ' ')}, {figure}: frames of {frame_ms} ms"
        yield Asked(what, delays, key, "<=", most_ms, "ms")


def _row(rows: Sequence[Figures], reason: str = NO_PART, **wanted: Any) -> Figures:
    """The first of the rows in which all that is wanted is so."""
    found = (row for row in rows if wanted.items() <= row.items())
    return next(found, nothing(reason))
