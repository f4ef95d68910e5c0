"""EndpointSlices as they are documented, and as they should not be."""

from typing import Any

import orjson
import pytest

from apigw.adapters.endpoint_slices import Slice, entries_of, put, read_list, read_slice
from apigw.core.discovery import RawEntry
from apigw.net.fetch import FetchFailed
from apigw.net.poller import PollFailed

HTTP = ({"name": "http", "port": 8080, "protocol": "TCP"},)
A, B, SIX = RawEntry("10.0.0.1", 80), RawEntry("10.0.0.2", 80), RawEntry("fd00::1", 80)
SLICE = {"addressType": "IPv4", "ports": list(HTTP), "endpoints": [{"addresses": ["10.0.0.1"]}]}


@pytest.mark.parametrize(
    ("change", "ready"),
    [
        ({}, (RawEntry("10.0.0.1", 8080),)),
        ({"endpoints": None}, ()),
        ({"endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}]}, (RawEntry("10.0.0.1", 8080),)),
        ({"endpoints": [{"addresses": []}, {}, 7, None]}, (None,) * 4),
        ({"endpoints": 7}, (None,)),
        ({"ports": 7}, (None,)),
        ({"ports": [7]}, (None,)),
        ({"ports": None}, (None,)),
        ({"ports": [{"port": "8080"}]}, (None,)),
        ({"ports": [{"port": 8080, "protocol": "SCTP"}]}, (None,)),
    ],
)
def test_a_slice_is_read_as_far_as_it_makes_sense(change: dict[str, Any], ready: tuple[RawEntry | None, ...]) -> None:
    assert read_slice(SLICE | change, None).ready == ready


@pytest.mark.parametrize(
    ("conditions", "ready", "serving"),
    [
        (None, 1, 0),
        ({}, 1, 0),
        ({"ready": None}, 1, 0),
        ({"ready": True, "terminating": True}, 1, 0),
        ({"ready": False}, 0, 0),
        ({"ready": False, "serving": True}, 0, 0),
        ({"ready": False, "serving": True, "terminating": True}, 0, 1),
        ({"ready": False, "serving": False, "terminating": True}, 0, 0),
    ],
)
def test_what_conditions_mean(conditions: Any, ready: int, serving: int) -> None:
    found = read_slice(SLICE | {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}]}, None)
    assert (len(found.ready), len(found.serving)) == (ready, serving)


@pytest.mark.parametrize(
    ("slices", "entries"),
    [
        ([], []),
        ([Slice("IPv4", (A,), (B,))], [A]),
        ([Slice("IPv4", (), (B,))], [B]),
        ([Slice("IPv4", (), (B,)), Slice("IPv4", (A,), ())], [A]),
        ([Slice("IPv6", (SIX,))], [SIX]),
        ([Slice("IPv6", (SIX,)), Slice("IPv4", (A,))], [A]),
        ([Slice("IPv6", (SIX,)), Slice("IPv4", (), (B,))], [B]),
        ([Slice("IPv6", (SIX,)), Slice("IPv4", (), ())], [SIX]),
        ([Slice("IPv4", (None,), (B,))], [None, B]),
    ],
)
def test_what_all_slices_come_to(slices: list[Slice], entries: list[RawEntry | None]) -> None:
    assert entries_of(slices) == entries


def test_a_list_has_a_version_and_names() -> None:
    item = SLICE | {"metadata": {"name": "a"}}
    version, slices = read_list(orjson.dumps({"metadata": {"resourceVersion": "7"}, "items": [item]}), None)
    assert version == "7" and list(slices) == ["a"]
    for bad in (b"", b"[]", b"{}", b'{"metadata": {"resourceVersion": ""}}', b'{"metadata": {"resourceVersion": 7}}'):
        with pytest.raises(PollFailed):
            read_list(bad, None)


def test_a_service_of_more_slices_than_kubernetes_makes_is_refused() -> None:
    slices = {str(number): Slice() for number in range(1000)}
    put(slices, "7", Slice("IPv4"))
    for name in ("1000", None, 7):
        with pytest.raises(FetchFailed):
            put(slices, name, Slice())
