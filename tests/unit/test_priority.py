"""Real-time priority is given up where the kernel would stop whoever has it, and taken again."""

from spaces_server.net.priority import Priority

TICK_NS = 20_000_000


class System:
    def __init__(self, *, lets: bool = True) -> None:
        self.lets = lets
        self.asked: list[bool] = []

    def schedule(self, real_time: bool) -> bool:
        self.asked.append(real_time)
        return self.lets


def run(priority: Priority, load: float, seconds: float, start_ns: int) -> int:
    ticks = round(seconds * 50)
    for tick in range(ticks):
        priority.ticked(round(load * TICK_NS), start_ns + tick * TICK_NS)
    return start_ns + ticks * TICK_NS


def test_it_is_taken_at_the_start_and_kept_under_an_ordinary_load() -> None:
    system = System()
    priority = Priority(system.schedule)
    run(priority, 0.8, 10, 0)
    assert priority.real_time
    assert system.asked == [True]


def test_it_is_given_up_under_full_load_and_taken_again_after() -> None:
    system = System()
    priority = Priority(system.schedule)
    now_ns = run(priority, 0.97, 2, 0)
    assert not priority.real_time
    now_ns = run(priority, 0.85, 5, now_ns)
    assert not priority.real_time  # or it would come and go
    run(priority, 0.5, 2, now_ns)
    assert priority.real_time
    assert system.asked == [True, False, True]


def test_where_the_system_does_not_let_us_it_is_asked_once() -> None:
    system = System(lets=False)
    priority = Priority(system.schedule)
    run(priority, 0.97, 2, run(priority, 0.1, 2, 0))
    assert not priority.real_time
    assert system.asked == [True]
