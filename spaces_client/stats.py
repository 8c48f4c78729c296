"""What a client knows of the sound that it gets: figures for people, and for programs."""

from dataclasses import dataclass

from spaces_client.client import Client
from spaces_client.words import person

MEASURE_S = 1.0  # until the clock is known, and something was heard


@dataclass(frozen=True, slots=True)
class SpeakerStats:
    """Somebody on stage.  level: -dBov, None while they are not heard.  delay_ms: from their mouth
    to this ear, None while it is not known."""

    member: int
    name: str
    handle: str
    level: int | None
    delay_ms: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """speakers: in the order of their seats.  clock_error_ms: by how much the clock that delays are
    measured by may be wrong at most, on this end.  rtt_ms: of the last ping.

    Of the mix, buffer_ms: how long after the quickest packets of its path it is played; target_ms:
    what the jitter buffer aims at; received, lost: datagrams; late: packets that came too late;
    recovered: lost frames that came as a copy or as in-band FEC; concealed_ms: sound made up;
    skipped_ms: left out, where too much was missing to be made up."""

    speakers: tuple[SpeakerStats, ...]
    clock_error_ms: float | None
    rtt_ms: float | None
    buffer_ms: float
    target_ms: float
    received: int
    lost: int
    late: int
    recovered: int
    concealed_ms: float
    skipped_ms: float


def stats_of(client: Client, output_ms: float) -> Stats:
    """output_ms: from a block being filled to its being heard."""

    def delay_ms(seat: object) -> float | None:
        known = client.clocks.ears.delay_ms(seat) if isinstance(seat, int) else None
        return None if known is None else round(known + output_ms, 1)

    playout = client.playout.stats
    return Stats(
        speakers=tuple(
            SpeakerStats(
                member=member.id,
                name=member.name,
                handle=member.handle,
                level=client.levels.get(member.seat) if isinstance(member.seat, int) else None,
                delay_ms=delay_ms(member.seat),
            )
            for member in client.view.stage
            if client.view.me is None or member.id != client.view.me.id
        ),
        clock_error_ms=_ms(client.clocks.server.error_ns),
        rtt_ms=_ms(client.rtt_ns),
        buffer_ms=round(playout.delay_ns / 1e6, 1),
        target_ms=round(playout.target_ns / 1e6, 1),
        received=client.received.packets,
        lost=client.received.lost,
        late=playout.late,
        recovered=playout.recovered_copy + playout.recovered_fec,
        concealed_ms=round(playout.concealed_samples / 48, 1),
        skipped_ms=round(playout.skipped_samples / 48, 1),
    )


def _ms(ns: int | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 1)


def described(stats: Stats) -> list[str]:
    """For a terminal, a line each."""
    lines = [_speaker(speaker) for speaker in stats.speakers] or ["nobody else is on stage"]
    clock, rtt = _shown(stats.clock_error_ms), _shown(stats.rtt_ms)
    lines.append(f"delays are right to {clock} ms at this end; round trip {rtt} ms")
    lines.append(
        f"the mix: buffered for {stats.buffer_ms:.0f} ms (target {stats.target_ms:.0f}), "
        f"{stats.lost} of {stats.received + stats.lost} datagrams lost, "
        f"{stats.recovered} frames recovered, {stats.late} late, "
        f"{stats.concealed_ms:.0f} ms concealed, {stats.skipped_ms:.0f} ms left out"
    )
    return lines


def _speaker(speaker: SpeakerStats) -> str:
    who = person(speaker.name, speaker.handle)
    level = "silent" if speaker.level is None else f"{-speaker.level} dBov"
    return f"{who}: {level}, {_shown(speaker.delay_ms)} ms from mouth to ear"


def _shown(ms: float | None) -> str:
    return "?" if ms is None else f"{ms:.1f}"
