"""`apigwctl drain` of a real gateway: it returns when the gateway has ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.tool import run
from tests.e2e.gateway import Gateway, quiet_port


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that the test may end."""
    gateway = Gateway(tmp_path, quiet_port())
    try:
        yield gateway.start()
    finally:
        gateway.kill()


def test_the_gateway_has_ended_with_0_when_it_returns(own: Gateway) -> None:
    ran = run("--config", str(own.main_file), "drain")
    assert ran.status == 0 and "has ended after" in ran.out
    assert own.wait(1) == 0
    again = run("--config", str(own.main_file), "drain")
    assert again.status == 1 and "no gateway answers" in again.err


def test_it_need_not_be_waited_for(own: Gateway) -> None:
    ran = run("--config", str(own.main_file), "drain", "--no-wait")
    assert ran.status == 0 and "drains, 0 requests in flight" in ran.out
    assert own.wait(10) == 0
