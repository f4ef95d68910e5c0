"""Where the instances of a registry may be: what follows from where the registry itself is."""

import pytest

from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Discovery


@pytest.mark.parametrize(
    ("discovery", "allowed"),
    [
        (Discovery("consul", "o", url="http://127.0.0.1:8500"), True),
        (Discovery("consul", "o", url="http://localhost:8500"), True),
        (Discovery("consul", "o", url="http://[::1]:8500"), True),
        (Discovery("consul", "o", url="http://10.0.0.1:8500"), False),
        (Discovery("consul", "o", url="http://127.0.0.1:8500", allow_loopback=False), False),
        (Discovery("consul", "o", url="http://10.0.0.1:8500", allow_loopback=True), True),
        (Discovery("etcd", "o", endpoints=("http://127.0.0.1:1", "http://127.0.0.1:2")), True),
        (Discovery("etcd", "o", endpoints=("http://127.0.0.1:1", "http://10.0.0.1:2")), False),
        (Discovery("dns", "o", port=80), False),
        (Discovery("dns", "o", port=80, nameservers=("127.0.0.1:5353",)), True),
        (Discovery("dns", "o", port=80, nameservers=("127.0.0.1", "10.0.0.1")), False),
        (Discovery("kubernetes", "o"), False),
    ],
)
def test_only_a_registry_on_this_machine_may_name_it_unless_told_otherwise(discovery: Discovery, allowed: bool) -> None:
    assert Wanted("orders", discovery).boundary().allow_loopback is allowed


def test_what_is_this_machines_is_known_by_its_addresses() -> None:
    boundary = Wanted("orders", Discovery("etcd", "orders")).boundary()
    assert boundary.is_own("127.0.0.1")
    assert not boundary.is_own("192.0.2.1") and not boundary.is_own("2001:db8::1")
