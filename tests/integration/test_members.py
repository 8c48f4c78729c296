"""The measurement of many members runs, and everyone is answered; how soon is not asserted."""

from bench.members import measure


def test_everyone_is_answered() -> None:
    seen = measure(members=60, joins=20, others=5, seconds=2)
    assert seen["members"] == 59
    assert seen["errors"] == {}
    assert seen["unanswered"] == 0
    answered = {what: times["count"] for what, times in seen["acknowledged"].items()}
    assert answered["join"] >= 35
    assert answered["raise_hand"] >= 5
    assert answered["chat"] >= 8
    assert seen["feed_datagrams_per_second"] > 0
    assert seen["server"]["most_sessions"] >= 60
