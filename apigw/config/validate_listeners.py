"""Listeners: who can reach them, and whether they can all be opened."""

import ipaddress
from typing import Protocol

from apigw.config.addresses import is_loopback
from apigw.config.model import Listener
from apigw.config.parse import Draft


class _Bound(Protocol):
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...


def check_listeners(draft: Draft, now_s: float) -> None:
    """Plaintext stays on this machine unless allowed; no two listeners take the same address and port."""
    seen: list[Listener] = []
    for listener in draft.config.listeners:
        _check_plaintext(draft, listener)
        if not draft.sound(listener, "address", "port"):
            continue
        for other in seen:
            if _overlap(listener, other):
                place = draft.place(other, "port")
                message = f"{_label(listener)} is taken by the listener {_label(other)} at {place}"
                draft.refuse(listener, "port", message)
                break
        seen.append(listener)
    _check_admin(draft, seen)


def _check_admin(draft: Draft, listeners: list[Listener]) -> None:
    admin = draft.config.admin
    if not draft.sound(admin, "address", "port"):
        return
    for listener in listeners:
        if listener.port == admin.port:
            place = draft.place(listener, "port")
            message = f"admin.port {admin.port} is also the port of a listener ({place}); admin pages are never public"
            draft.refuse(admin, "port", message)
            return


def _check_plaintext(draft: Draft, listener: Listener) -> None:
    if not draft.sound(listener, "tls", "allow_plaintext", "address"):
        return
    if listener.tls is not None and listener.allow_plaintext:
        message = (
            "allow_plaintext contradicts tls: one listener speaks one of them; add a second listener for plain HTTP"
        )
        draft.refuse(listener, "allow_plaintext", message)
    elif listener.tls is None and not listener.allow_plaintext and not is_loopback(listener.address):
        message = (
            f"the listener {listener.address} has no tls and is not on loopback: tokens would travel in clear text; "
            "add tls, or allow_plaintext: true where something in front terminates TLS"
        )
        draft.refuse(listener, "address", message)


def _overlap(one: _Bound, other: _Bound) -> bool:
    if one.port != other.port:
        return False
    first, second = ipaddress.ip_address(one.address), ipaddress.ip_address(other.address)
    if first.version != second.version:
        return False
    return first == second or first.is_unspecified or second.is_unspecified


def _label(bound: _Bound) -> str:
    return f"[{bound.address}]:{bound.port}" if ":" in bound.address else f"{bound.address}:{bound.port}"
