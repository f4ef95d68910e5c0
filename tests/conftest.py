"""The tests run on the reactor of the daemon; it must be there before pytest-twisted picks another.

Three processes run them side by side (pytest-xdist), a file in one of them: most tests wait. Who measures time or CPU,
marked `alone`, waits until nothing else runs, and nothing else begins meanwhile; waiting is no part of its own time.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies

if "twisted.internet.reactor" not in sys.modules:
    from apigw.net.reactor import install

    install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-floor", action="store_true", help="judge a p99 strictly: on a quiet machine of one's own")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than 5 s; leave it out with -m 'not slow'")
    config.addinivalue_line("markers", "alone: measures; runs while no other test does")


@pytest.fixture(scope="session", autouse=True)
def _table_of_characters() -> None:
    """Hypothesis makes one in a fresh clone, of up to a second, which it would call the first example too slow for."""
    strategies.text().validate()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Tests share a lock, one that is `alone` has it for itself; while it waits, at the gate, no other begins."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    here = Path(__file__)
    with here.open() as lock:
        with here.with_name("servers.py").open() as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)
