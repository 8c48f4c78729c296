"""The last 30 s of every speaker."""

from spaces_server.recorder import KEPT_NS, MAX_MEMBERS, MAX_PACKETS, Recorder

MS = 1_000_000


def said(recorder: Recorder, member: int, count: int, from_ns: int = 0) -> None:
    for number in range(count):
        recorder.take(member, number * 960, b"%d" % number, from_ns + number * 20 * MS)


def test_packets_are_given_back_as_they_came() -> None:
    recorder = Recorder()
    said(recorder, 1, 3)
    recorder.take(2, 5, b"of another", 0)
    assert recorder.recording(1, 60 * MS) == [(0, b"0"), (960, b"1"), (1_920, b"2")]
    assert recorder.recording(2, 60 * MS) == [(5, b"of another")]
    assert recorder.recording(3, 60 * MS) == []


def test_what_is_older_than_30_s_is_not_given_even_if_nothing_new_came() -> None:
    recorder = Recorder()
    said(recorder, 1, 10)
    assert len(recorder.recording(1, KEPT_NS)) == 10
    assert len(recorder.recording(1, KEPT_NS + 100 * MS)) == 5
    assert recorder.recording(1, KEPT_NS + 181 * MS) == []


def test_old_packets_leave_the_memory_as_new_ones_come() -> None:
    recorder = Recorder()
    said(recorder, 1, 50 * 60)
    assert len(recorder._packets[1]) == 50 * 30 + 1
    assert recorder.recording(1, 3_000 * 20 * MS)[0] == (1_500 * 960, b"1500")


def test_whoever_sends_too_much_is_full_until_the_oldest_is_old() -> None:
    recorder = Recorder()
    for number in range(MAX_PACKETS):
        assert not recorder.full(1, number)
        recorder.take(1, number, b"opus", number)
    assert recorder.full(1, MAX_PACKETS)
    assert not recorder.full(2, MAX_PACKETS)
    assert recorder.full(1, KEPT_NS)
    assert not recorder.full(1, KEPT_NS + 1)
    recorder.take(1, MAX_PACKETS, b"opus", KEPT_NS + 1)
    assert len(recorder._packets[1]) == MAX_PACKETS


def test_who_comes_and_goes_all_the_time_fills_no_memory() -> None:
    recorder = Recorder()
    for member in range(2 * MAX_MEMBERS):
        said(recorder, member, 2)
    assert len(recorder._packets) == MAX_MEMBERS
    assert recorder.recording(2 * MAX_MEMBERS - 1, 0)


def test_of_whoever_is_silent_nothing_is_kept_any_longer() -> None:
    recorder = Recorder()
    said(recorder, 1, 10)
    said(recorder, 2, 10, from_ns=KEPT_NS)
    recorder.forget(KEPT_NS + 181 * MS)
    assert recorder._packets.keys() == {2}
    recorder.forget(3 * KEPT_NS)
    assert not recorder._packets
