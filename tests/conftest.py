"""The tests run on the reactor of the daemon; it must be there before pytest-twisted picks another."""

import sys

import pytest

if "twisted.internet.reactor" not in sys.modules:
    from apigw.net.reactor import install

    install()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than 5 s; leave it out with -m 'not slow'")
