"""A stream, from what is said to what is heard."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from bench.jitter.receivers import Fixed, Heard, OnServer, Ours, Receiver, Samples
from bench.jitter.sender import Sender
from bench.jitter.speex import Speex
from bench.jitter.traces import Trace
from protocol.packets import UplinkAudio
from protocol.path_delay import MS
from protocol.reception import Reception, Reporter


class Setup(NamedTuple):
    """A receiver, and what its sender does: see Sender."""

    receiver: Callable[[Trace], Receiver]
    by_report: bool
    copies: bool


SETUPS = {
    "ours": Setup(Ours, by_report=True, copies=False),
    "ours+redundancy": Setup(Ours, by_report=True, copies=True),
    "server": Setup(OnServer, by_report=True, copies=False),
    "server+redundancy": Setup(OnServer, by_report=True, copies=True),
    "speexdsp": Setup(Speex, by_report=False, copies=False),
    "fixed60": Setup(Fixed, by_report=False, copies=False),
}


def play(trace: Trace, spoken: Samples, name: str) -> tuple[Heard, Samples]:
    """Sends the speech along the trace and plays it as this one of SETUPS; -> (figures, all that
    was heard, (n,), from the moment on at which the first packet was sent)."""
    setup = SETUPS[name]
    sender = Sender(spoken, trace.packets[0].number, by_report=setup.by_report, copies=setup.copies)
    receiver = setup.receiver(trace)
    pull_ms = receiver.pull_samples / 48
    arrivals: list[tuple[float, int, UplinkAudio]] = []  # a heap
    reporter = Reporter(-1, 0)
    reports: list[tuple[float, Reception]] = []
    heard: list[Samples] = []
    now_ms = trace.packets[0].send_ms + trace.least_ms % pull_ms + receiver.wait_ms
    silence_before = round((now_ms - trace.packets[0].send_ms) * 48)
    sending = iter(enumerate(trace.packets))
    upcoming = next(sending, None)
    while now_ms < trace.end_ms:
        while upcoming is not None and upcoming[1].send_ms <= now_ms:
            number, packet = upcoming
            while reports and reports[0][0] <= packet.send_ms:
                sender.report(reports.pop(0)[1])
            audio = sender.send(packet)
            if packet.arrive_ms is not None:
                heappush(arrivals, (packet.arrive_ms, number, audio))
            upcoming = next(sending, None)
        while arrivals and arrivals[0][0] <= now_ms:
            arrive_ms, number, audio = heappop(arrivals)
            reception = reporter.count(number, round(arrive_ms * MS))
            if reception is not None:
                reports.append((arrive_ms + trace.least_ms, reception))
            receiver.receive(trace.packets[number], audio, arrive_ms)
            reporter.was_late(receiver.late_ns)
        out = np.zeros(receiver.pull_samples, np.float32)
        receiver.pull(out, now_ms)
        heard.append(out)
        now_ms += pull_ms
    return receiver.heard, np.concatenate([np.zeros(silence_before, np.float32), *heard])
