"""Clients that measure keep step with nothing; those that only load come in even steps."""

from tests.e2e import surge

RATE, SECONDS = 500.0, 0.6


def _due_steps(port: int, exact: bool) -> list[float]:
    """When each request was due, in steps since the begin."""
    process = surge.clients(port=port, target="/", rate=RATE, connections=50, seconds=SECONDS, exact=exact)
    seen = surge.summary(process, 20)
    assert set(seen.statuses) == {200}
    assert len(seen.answers) + seen.unsent >= RATE * SECONDS - 1
    return sorted((at_s - wait_s) * RATE for at_s, _, wait_s in seen.answers)


def test_clients_that_load_come_in_even_steps(quick_backend: int) -> None:
    due = _due_steps(quick_backend, exact=False)
    assert all(abs(moment - round(moment)) < 0.01 for moment in due)


def test_clients_that_measure_draw_a_moment_of_each_step(quick_backend: int) -> None:
    """One request a step, as often as the others ask; where in the step says nothing about the next one."""
    due = _due_steps(quick_backend, exact=True)
    assert [int(moment) for moment in due] == list(range(len(due)))
    tenths = [int(moment * 10) % 10 for moment in due]
    assert all(tenths.count(tenth) >= 5 for tenth in range(10)), "30 each are to be expected"
