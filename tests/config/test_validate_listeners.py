"""Listeners: plaintext stays at home, addresses are not taken twice (more in tests/golden/listeners.yaml)."""

from typing import Any, Callable

import pytest

Refused = Callable[[Any], list[str]]


@pytest.mark.parametrize(
    ("listener", "accepted"),
    [
        ({"address": "127.0.0.1"}, True),
        ({"address": "127.1.2.3"}, True),
        ({"address": "::1"}, True),
        ({"address": "0.0.0.0"}, False),
        ({"address": "::"}, False),
        ({"address": "10.0.0.1"}, False),
        ({"address": "10.0.0.1", "allow_plaintext": True}, True),
        ({"address": "127.0.0.1", "allow_plaintext": True}, True),
    ],
)
def test_plaintext_is_for_loopback_unless_allowed(
    refused: Refused, document: dict[str, Any], listener: dict[str, Any], accepted: bool
) -> None:
    assert (refused(document | {"listeners": [listener | {"port": 8080}]}) == []) is accepted


@pytest.mark.parametrize(
    ("first", "second", "accepted"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", True),
        ("0.0.0.0", "127.0.0.1", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("::1", "127.0.0.1", True),
        ("::", "::1", False),
        ("::1", "0:0::1", False),
    ],
)
def test_one_address_and_port_is_for_one_listener(
    refused: Refused, document: dict[str, Any], first: str, second: str, accepted: bool
) -> None:
    listeners = [{"address": address, "port": 8080, "allow_plaintext": True} for address in (first, second)]
    assert (refused(document | {"listeners": listeners}) == []) is accepted


def test_the_default_admin_port_is_known_too(refused: Refused, document: dict[str, Any]) -> None:
    problems = refused(document | {"listeners": [{"address": "127.0.0.1", "port": 9601}]})
    assert len(problems) == 1 and "admin.port 9601 is also the port of a listener" in problems[0]
