"""What EndpointSlices of Kubernetes (discovery.k8s.io/v1) come to: the endpoints of a service that get requests.

An endpoint is an instance while its condition `ready` is not false. When none is, those that still serve while they
terminate are, as kube-proxy does it. Addresses of IPv6 count where there is none of IPv4: a dual-stack service has
slices of both, of the same pods.
"""

from collections.abc import Iterable
from typing import Any

import orjson
from attrs import frozen

from apigw.core.discovery import RawEntry
from apigw.net.fetch import FetchFailed
from apigw.net.poller import PollFailed

_MAX_SLICES = 1000  # Kubernetes puts up to 100 endpoints into one, 1000 at most


@frozen
class Slice:
    """What counts of an EndpointSlice: its endpoints that are ready, and those that serve while they terminate. None
    stands for one that cannot be read, or has no such port."""

    family: object = None  # IPv4, IPv6 or FQDN
    ready: tuple[RawEntry | None, ...] = (None,)
    serving: tuple[RawEntry | None, ...] = ()


def read_list(body: bytes, port: int | str | None) -> tuple[str, dict[str, Slice]]:
    """The resourceVersion and the slices of a list. Raises PollFailed."""
    try:
        document = orjson.loads(body)
        version = document["metadata"]["resourceVersion"]
        items = [(each["metadata"]["name"], each) for each in document.get("items") or []]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise PollFailed("the answer is no list of EndpointSlices") from None
    if not isinstance(version, str) or not version:
        raise PollFailed("the answer has no resourceVersion")
    slices: dict[str, Slice] = {}
    for name, each in items:
        put(slices, name, read_slice(each, port))
    return version, slices


def put(slices: dict[str, Slice], name: object, found: Slice) -> None:
    if not isinstance(name, str) or (name not in slices and len(slices) >= _MAX_SLICES):
        raise FetchFailed(f"an EndpointSlice without a name, or more than {_MAX_SLICES} of them")
    slices[name] = found


def entries_of(every: Iterable[Slice]) -> list[RawEntry | None]:
    """What all slices of a service come to; see the top."""
    slices = list(every)
    if any(each.family == "IPv4" and (any(each.ready) or any(each.serving)) for each in slices):
        slices = [each for each in slices if each.family != "IPv6"]
    ready = [entry for each in slices for entry in each.ready]
    if not any(ready):
        ready += [entry for each in slices for entry in each.serving]
    return ready


def read_slice(document: dict[str, Any], wanted_port: int | str | None) -> Slice:
    try:
        endpoints = list(document.get("endpoints") or [])
        port = _port(document.get("ports") or [], wanted_port)
    except (TypeError, AttributeError):
        return Slice()
    ready: list[RawEntry | None] = []
    serving: list[RawEntry | None] = []
    for each in endpoints:
        try:
            conditions = each.get("conditions") or {}
            address = each["addresses"][0]  # "consumers should use the first": the others are the same endpoint
            is_ready, serves, ends = (conditions.get(name) for name in ("ready", "serving", "terminating"))
        except (KeyError, IndexError, TypeError, AttributeError):
            ready.append(None)
            continue
        entry = None if port is None else RawEntry(address, port)
        if is_ready is not False:  # "nil should be interpreted as true"
            ready.append(entry)
        elif serves is True and ends is True:
            serving.append(entry)
    return Slice(document.get("addressType"), tuple(ready), tuple(serving))


def _port(ports: list[dict[str, Any]], wanted: int | str | None) -> int | None:
    """The slice's port of this name or number, or the only one. None when it has no such TCP port."""
    tcp = [each for each in ports if each.get("protocol") in (None, "", "TCP") and type(each.get("port")) is int]
    if wanted is not None:
        key = "port" if isinstance(wanted, int) else "name"
        tcp = [each for each in tcp if each.get(key) == wanted]
    return tcp[0]["port"] if len(tcp) == 1 else None
