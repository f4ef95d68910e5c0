"""Slots of keys as the specification has them, and maps of a cluster, sound and not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.cluster_slots import SLOTS, SlotRange, read_info, read_redirection, read_slots, slot_of, tag_within
from apigw.core.window import counter_key

ASKED = ("10.0.0.9", 7000)


def crc16(data: bytes) -> int:
    """The specification's own: polynomial 1021, nothing reflected, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
            crc &= 0xFFFF
    return crc


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("123456789", "123456789"),
        ("{user1000}.following", "user1000"),
        ("foo{}{bar}", "foo{}{bar}"),
        ("foo{{bar}}zap", "{bar"),
        ("foo{bar}{zap}", "bar"),
        ("foo{bar", "foo{bar"),
        ("", ""),
    ],
)
def test_the_examples_of_the_specification(key: str, tag: str) -> None:
    assert slot_of(key) == crc16(tag.encode()) % SLOTS
    assert crc16(b"123456789") == 0x31C3


@given(st.text(max_size=40))
def test_any_key_has_a_slot(key: str) -> None:
    """That of its tag; both windows of a counter have the same."""
    assert 0 <= slot_of(key) < SLOTS
    counter = counter_key("standard", "user", key)
    assert slot_of(f"{counter}:1707264000") == slot_of(f"{counter}:1707263940") == slot_of(counter)


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 2000)), min_size=1, max_size=4))
def test_a_tag_is_found_for_any_slots(spans: list[tuple[int, int]]) -> None:
    """Even for a single one."""
    ranges = [SlotRange(first, min(first + length, SLOTS - 1), ASKED) for first, length in spans]
    tag = tag_within(ranges)
    assert tag is not None
    slot = slot_of(f"rate:{{{tag}}}")
    assert any(one.first <= slot <= one.last for one in ranges)


def test_no_tag_for_no_slots() -> None:
    assert tag_within([]) is None


def test_the_map_of_the_slots_in_order() -> None:
    """Whoever does not know its host is at the one that was asked; what newer versions add is passed over."""
    reply = [
        [5461, 16383, [b"redis-b.example", 7001, b"id2", [b"ip", b"10.0.0.2"]]],
        [0, 5460, [b"", 7000, b"id1"], [None, 7003, b"id3"], [b"10.0.0.4", 7004]],
    ]
    assert read_slots(reply, ASKED) == (
        SlotRange(0, 5460, ("10.0.0.9", 7000), (("10.0.0.9", 7003), ("10.0.0.4", 7004))),
        SlotRange(5461, 16383, ("redis-b.example", 7001)),
    )
    assert read_slots([], ASKED) == ()


@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"OK",
        [[0, 1]],
        [[0, 16384, [b"a", 1]]],
        [[2, 1, [b"a", 1]]],
        [["0", 1, [b"a", 1]]],
        [[0, 1, b"a:1"]],
        [[0, 1, [b"a"]]],
        [[0, 1, [b"a", 0]]],
        [[0, 1, [b"a", b"1"]]],
        [[0, 1, [b"?", 1]]],
        [[0, 1, [b"a\n", 1]]],
        [[0, 1, [b"a" * 300, 1]]],
    ],
)
def test_what_is_no_map(reply: Any) -> None:
    with pytest.raises(ValueError):
        read_slots(reply, ASKED)


def test_how_a_node_finds_its_cluster() -> None:
    assert read_info(b"cluster_state:ok\r\ncluster_slots_ok:16384\r\ncluster_current_epoch:7\r\n") == (True, 7)
    assert read_info(b"cluster_state:fail\r\ncluster_current_epoch:0\r\n") == (False, 0)
    for nonsense in (None, b"", b"cluster_state:ok", b"cluster_current_epoch:x\ncluster_state:ok", [b"ok"]):
        with pytest.raises(ValueError):
            read_info(nonsense)


def test_where_a_redirection_leads() -> None:
    assert read_redirection("MOVED 3999 127.0.0.1:6381", ASKED) == (3999, ("127.0.0.1", 6381))
    assert read_redirection("ASK 0 ::1:6381", ASKED) == (0, ("::1", 6381))
    assert read_redirection("MOVED 3999 :6381", ASKED) == (3999, ("10.0.0.9", 6381))
    for nonsense in ("MOVED", "MOVED 3999", "MOVED x a:1", "MOVED 99999 a:1", "ASK 1 a", "ASK 1 ?:1", "ASK 1 a:b"):
        with pytest.raises(ValueError):
            read_redirection(nonsense, ASKED)
