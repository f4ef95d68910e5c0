"""What a start leaves behind is given back, and what stays is out of the collector's sight."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from apigw.net.memory import keep_out_of_sight, settle_memory, trim_memory, trim_soon
from tests.threadless import Threadless

# Blocks below malloc's threshold for mmap, and one above them that keeps the heap's end in place.
FREED_BEHIND_A_PIN = """
import os
from apigw.net.memory import trim_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [bytearray(100_000) for _ in range(500)]
pin = bytearray(100_000)
del blocks
before = resident()
trim_memory()
print(before - resident())
"""


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_settling_collects_first_and_keeps_no_garbage_for_ever() -> None:
    gone = weakref.ref(Cycle())
    settle_memory()
    assert gone() is None


def test_what_lives_after_settling_is_not_looked_through_again() -> None:
    lives = Cycle()
    settle_memory()
    assert gc.get_freeze_count() > 1000
    assert not any(thing is lives for thing in gc.get_objects())


def test_what_comes_later_is_still_collected() -> None:
    keep_out_of_sight()
    gone = weakref.ref(Cycle())
    gc.collect()
    assert gone() is None


def test_the_collector_looks_rarely_and_is_on() -> None:
    keep_out_of_sight()
    assert gc.isenabled() and gc.get_threshold()[0] >= 10_000


def test_trimming_gives_free_pages_back_to_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", FREED_BEHIND_A_PIN], capture_output=True, check=True, timeout=20)
    assert int(ran.stdout) > 20_000_000


def test_trimming_again_does_no_harm() -> None:
    trim_memory()
    trim_memory()


def test_trimming_is_nobodys_failure_where_no_thread_can_be_started() -> None:
    """A reload that is in force must not be told as refused by that."""
    clock: Any = Clock()
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        trim_soon(Threadless(clock))
        clock.advance(0)
    finally:
        globalLogPublisher.removeObserver(events.append)
    gc.collect()
    assert [event["why"] for event in events] == ["[Errno 11] can't start new thread"]
