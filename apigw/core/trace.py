"""Request IDs and trace context: W3C Trace Context (level 1) and Zipkin B3, continued when valid, else begun."""

import os
import re
from typing import Callable, Mapping

from apigw.exchange import Identity

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE = re.compile(rb"[\t -~]{1,512}")
_B3_SINGLE = re.compile(rb"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?")
_B3_TRACE = re.compile(rb"[0-9a-f]{16}|[0-9a-f]{32}")
_B3_SPAN = re.compile(rb"[0-9a-f]{16}")
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

Parent = tuple[str, str, bool, bool]  # trace id, span id, sampled, whether it came as B3


class Randomness:
    """Random hex digits from os.urandom, fetched by the page: a system call for a hundred requests."""

    __slots__ = ("_page", "_at", "_source")

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._page = ""
        self._at = 0
        self._source = source

    def hex(self, digits: int) -> str:
        if self._at + digits > len(self._page):
            self._page = self._source(4096).hex()
            self._at = 0
        self._at += digits
        return self._page[self._at - digits : self._at]


def uuid4(digits: str) -> str:
    """A version 4 UUID (RFC 9562 5.4) of 32 random hex digits."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def identify(fields: Mapping[bytes, bytes], randomness: Randomness) -> Identity:
    """The request's identity from its header fields. Never refuses: what is invalid is replaced."""
    given = fields.get(b"x-request-id")
    fresh = randomness.hex(80)
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        request_id = given.decode("ascii")
    else:
        request_id = uuid4(fresh[48:])
    span_id = fresh[32:48]
    parent: Parent | None = None
    if b"traceparent" in fields:
        parent = _w3c_parent(fields[b"traceparent"])
    elif b"b3" in fields or b"x-b3-traceid" in fields:
        parent = _b3_parent(fields)
    if parent is None:
        trace_id = fresh[:32]
        return Identity(request_id, trace_id, span_id, None, False, _traceparent(trace_id, span_id, False))
    trace_id, parent_span_id, sampled, from_b3 = parent
    lines = _traceparent(trace_id, span_id, sampled)
    state = fields.get(b"tracestate")
    if state and not from_b3 and _TRACESTATE.fullmatch(state) is not None:
        lines += b"tracestate: " + state + b"\r\n"
    if from_b3:
        lines += b"X-B3-TraceId: %b\r\nX-B3-SpanId: %b\r\nX-B3-ParentSpanId: %b\r\nX-B3-Sampled: %d\r\n" % (
            trace_id.encode(),
            span_id.encode(),
            parent_span_id.encode(),
            sampled,
        )
    return Identity(request_id, trace_id, span_id, parent_span_id, sampled, lines)


def _traceparent(trace_id: str, span_id: str, sampled: bool) -> bytes:
    return f"traceparent: 00-{trace_id}-{span_id}-{'01' if sampled else '00'}\r\n".encode("ascii")


def _w3c_parent(value: bytes | None) -> Parent | None:
    match = _TRACEPARENT.fullmatch(value or b"")
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    # 3.2.2.1: version ff is invalid; version 00 has exactly four parts
    if version == b"ff" or (version == b"00" and rest) or trace_id == b"0" * 32 or span_id == b"0" * 16:
        return None
    return trace_id.decode(), span_id.decode(), bool(int(flags, 16) & 1), False


def _b3_parent(fields: Mapping[bytes, bytes]) -> Parent | None:
    single = fields.get(b"b3")
    if single is not None:
        match = _B3_SINGLE.fullmatch(single)
        if match is None:
            return None
        trace_id, span_id, decision = match.groups()
        sampled = decision in (b"1", b"d")
    else:
        trace_id = fields.get(b"x-b3-traceid", b"")
        span_id = fields.get(b"x-b3-spanid", b"")
        if _B3_TRACE.fullmatch(trace_id) is None or _B3_SPAN.fullmatch(span_id) is None:
            return None
        sampled = fields.get(b"x-b3-sampled") == b"1" or fields.get(b"x-b3-flags") == b"1"
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return trace_id.decode().rjust(32, "0"), span_id.decode(), sampled, True
