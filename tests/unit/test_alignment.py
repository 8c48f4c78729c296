"""By how much later a microphone's frames are best to begin."""

from spaces_client.alignment import KEPT_SAMPLES, LEAST_SAMPLES, SEEN_SAMPLES, Alignment

FRAME = 960


def speaking(samples: int = SEEN_SAMPLES) -> Alignment:
    alignment = Alignment(FRAME)
    for _ in range(0, samples, FRAME):
        alignment.sent(FRAME)
    alignment.asked()
    return alignment


def test_what_is_spare_but_a_little() -> None:
    alignment = speaking()
    assert alignment.later_samples == 0
    alignment.told(700)
    assert alignment.later_samples == 700 - KEPT_SAMPLES
    alignment.told(0)
    assert alignment.later_samples == 0


def test_next_to_nothing_is_not_worth_a_move() -> None:
    alignment = speaking()
    alignment.told(KEPT_SAMPLES + LEAST_SAMPLES - 1)
    assert alignment.later_samples == 0
    alignment.told(KEPT_SAMPLES + LEAST_SAMPLES)
    assert alignment.later_samples == LEAST_SAMPLES


def test_a_delay_that_the_server_takes_back_is_left_to_it() -> None:
    alignment = speaking()
    alignment.told(FRAME)
    assert alignment.later_samples == 0


def test_what_is_said_of_packets_from_before_a_move_moves_nothing() -> None:
    alignment = speaking()
    alignment.told(700)
    alignment.moved()
    assert alignment.later_samples == 0
    alignment.told(700)
    assert alignment.later_samples == 0, "asked before the move"
    alignment.sent(FRAME)
    alignment.asked()
    alignment.told(700)
    assert alignment.later_samples == 0, "asked too soon after it"
    for _ in range(0, SEEN_SAMPLES, FRAME):
        alignment.sent(FRAME)
    alignment.told(700)
    assert alignment.later_samples == 0, "asked too soon, answered later"
    alignment.asked()
    alignment.told(700)
    assert alignment.later_samples == 700 - KEPT_SAMPLES


def test_at_first_nothing_is_known() -> None:
    alignment = speaking(SEEN_SAMPLES - FRAME)
    alignment.told(700)
    assert alignment.later_samples == 0
