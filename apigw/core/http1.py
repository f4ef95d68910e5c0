"""HTTP/1.1 messages, strictly (RFC 9112): heads through llhttp behind a grammar of our own, bodies by hand.

Two readers must agree before a request's head is believed. The grammar below refuses what request smuggling
has ever used and llhttp may let pass (bare CR or LF, obs-fold, blanks before a colon, control bytes); llhttp,
the parser of Node, is the second opinion and takes the head apart. A response's head, of a backend that the
configuration names, has the grammar alone. Framing is then decided here, once:

    Transfer-Encoding  Content-Length  request              response
    absent             absent          no body              to the end of the connection
    absent             one number      that many bytes      that many bytes
    "chunked"          absent          chunked              chunked
    anything else, several lines, both  refused             refused
"""

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from apigw.constants import (
    MAX_BODY_OVERHEAD_RATIO,
    MAX_CHUNK_EXTENSION_BYTES,
    MAX_CHUNK_OVERHEAD_BYTES,
    MAX_HEADERS,
    MAX_TRAILER_BYTES,
)
from apigw.core.headers import reply_line
from apigw.exchange import Header

# "." is any byte but LF, a fast loop; _clean() has refused every other byte that no value may have.
_FIELDS = rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:.*\r\n)*)\r\n"
_REQUEST_LINE = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])\r\n"
_REQUEST_HEAD = re.compile(_REQUEST_LINE + _FIELDS)
_REQUEST_LINE_ONLY = re.compile(_REQUEST_LINE)
_RESPONSE_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (.*))?\r\n" + _FIELDS)
_PERMITTED = bytes({*b"\t\r\n", *range(0x20, 0x7F), *range(0x80, 0x100)})
_IMPOSSIBLE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH = re.compile(rb"[0-9]{1,18}")

# Lines of these that come twice are two readings of one message (RFC 9110 5.3); refused, even when equal.
_SINGLE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect", b"content-type")
)

_LINE_BYTES_KEPT = 128  # of one line, and this many of them: 1 MiB at most, whatever backends say
_LINES_KEPT = 1024
_lines: dict[bytes, tuple[Header, bytes]] = {}


class MalformedMessage(Exception):
    """The bytes are no acceptable HTTP/1.1 message; str() is the reason, for the log."""


class _Collector:
    """llhttp's callbacks: the header lines as it read them."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines.append((name, value))


class Head:
    """A message head: the start line's parts, header lines in order, and the framing of the body.

    fields: lower-case name -> value, lines of one name joined by ", " (Cookie by "; ").
    content_length is None when absent; chunked is never True together with it.
    passing: of a response, the lines that go on to the client unless Connection or the route says more.
    """

    __slots__ = (
        "method", "target", "status", "reason", "http10", "headers", "fields", "content_length", "chunked", "passing",
    )  # fmt: skip

    def __init__(self, headers: list[Header], http10: bool) -> None:
        self.method = ""
        self.target = b""
        self.status = 0
        self.reason = b""
        self.http10 = http10
        self.passing = b""
        if len(headers) > MAX_HEADERS:
            raise MalformedMessage("too many header lines")
        fields = {lower: value for _, lower, value in headers}
        if len(fields) < len(headers):
            fields = _joined(headers)
        self.headers = headers
        self.fields = fields
        self.chunked = False
        self.content_length: int | None = None
        coding = fields.get(b"transfer-encoding")
        length = fields.get(b"content-length")
        if length is not None:
            if coding is not None:
                raise MalformedMessage("both content-length and transfer-encoding")
            if _LENGTH.fullmatch(length) is None:
                raise MalformedMessage("bad content-length")
            self.content_length = int(length)
        elif coding is not None:
            if coding.lower() != b"chunked" or http10:
                raise MalformedMessage("transfer-encoding is not chunked")
            self.chunked = True


def _joined(headers: list[Header]) -> dict[bytes, bytes]:
    """The fields where lines of one name come more than once. Raises MalformedMessage."""
    fields: dict[bytes, bytes] = {}
    for _, lower, value in headers:
        if lower not in fields:
            fields[lower] = value
        elif lower in _SINGLE:
            raise MalformedMessage("repeated " + lower.decode("ascii"))
        else:
            fields[lower] += (b"; " if lower == b"cookie" else b", ") + value
    return fields


def _header(name: bytes, value: bytes) -> Header:
    return name, name.lower(), value.strip(b" \t")


def _line(line: bytes) -> tuple[Header, bytes]:
    """A line of a response's head, and as it passes. Most of a backend's lines were in its last answer too: they are
    remembered."""
    name, _, value = line.partition(b":")
    header = _header(name, value)
    known = header, reply_line(header)
    if len(line) <= _LINE_BYTES_KEPT:
        if len(_lines) >= _LINES_KEPT:
            _lines.clear()
        _lines[line] = known
    return known


def _clean(data: bytes) -> bool:
    """Whether a head has no control byte but HTAB and no bare CR; the grammar has LF only after CR (RFC 9110 5.5)."""
    return not data.translate(None, _PERMITTED) and data.count(b"\r") == data.count(b"\n")


def request_head(data: bytes) -> Head:
    """Parse a whole request head, CRLF CRLF included. Raises MalformedMessage."""
    match = _REQUEST_HEAD.fullmatch(data)
    if match is None or not _clean(data):
        raise MalformedMessage("request head breaks the grammar")
    method, target, minor, _ = match.groups()
    collector = _Collector()
    try:
        HttpRequestParser(collector).feed_data(data)
    except HttpParserUpgrade:
        if method == b"CONNECT":
            raise MalformedMessage("CONNECT is not for a gateway") from None
    except HttpParserError as error:
        raise MalformedMessage(f"llhttp: {error}") from None
    head = Head([_header(*line) for line in collector.lines], minor == b"0")
    head.method = method.decode("ascii")
    head.target = target
    return head


def impossible(data: bytes, start: int) -> bool:
    """Whether an unfinished request head can no longer become a valid one, looking at data[start:]."""
    if _IMPOSSIBLE.search(data, max(0, start - 1)) is not None:
        return True
    return b"\r\n" in data and _REQUEST_LINE_ONLY.match(data) is None


def response_head(data: bytes, to_head: bool) -> Head:
    """Parse a whole response head. `to_head`: it answers a HEAD request. Raises MalformedMessage.

    A response without a body (RFC 9112 6.3: to HEAD, 1xx, 204, 304) has chunked False and content_length 0,
    whatever it says; its Content-Length line stays in `fields` for HEAD and 304.
    """
    match = _RESPONSE_HEAD.fullmatch(data)
    if match is None or not _clean(data):
        raise MalformedMessage("response head breaks the grammar")
    minor, status, reason, block = match.groups()
    known = _lines.get
    lines = [known(line) or _line(line) for line in block.split(b"\r\n")[:-1]]
    head = Head([header for header, _ in lines], minor == b"0")
    head.passing = b"".join([passing for _, passing in lines])
    head.status = int(status)
    head.reason = reason or b""
    if to_head or head.status < 200 or head.status in (204, 304):
        head.chunked = False
        head.content_length = 0
    return head


class ChunkDecoder:
    """Takes a chunked body apart (RFC 9112 7.1). feed() as bytes come; `done` once the last CRLF was seen.

    declared_bytes: the sum of the chunk sizes seen so far, to refuse a body before it comes.
    After `done`, `rest` holds what came behind the body. Extensions and trailers are checked and dropped.
    One feed() looks at no more than `budget` chunks, so that tiny chunks cannot hold the loop;
    when `more` is True afterwards, feed(b"") goes on.
    """

    __slots__ = ("declared_bytes", "done", "more", "rest", "_left", "_buffer", "_state", "_overhead", "_trailer")

    def __init__(self) -> None:
        self.declared_bytes = 0
        self.done = False
        self.more = False
        self.rest = b""
        self._buffer = b""
        self._left = 0  # of the chunk in work
        self._state = _SIZE
        self._overhead = 0
        self._trailer = 0

    def feed(self, data: bytes, budget: int = 500) -> list[bytes]:
        """The payload pieces in `data`. Raises MalformedMessage."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        self.more = False
        while at < end and not self.done:
            if self._state is _DATA:
                take = min(self._left, end - at)
                pieces.append(data[at : at + take] if at or take < end else data)
                at += take
                self._left -= take
                if self._left == 0:
                    self._state = _DATA_END
                continue
            if self._state is _DATA_END:
                if end - at < 2:
                    if data[at:] != b"\r":
                        raise MalformedMessage("chunk longer than its size")
                    break
                if data[at : at + 2] != b"\r\n":
                    raise MalformedMessage("chunk longer than its size")
                at += 2
                self._state = _SIZE
                budget -= 1
                if budget <= 0:
                    self.more = at < end
                    break
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._check_partial(data[at:])
                break
            if self._state is _SIZE:
                self._size_line(data[at:line_end])
            else:
                self._trailer_line(data[at:line_end])
            at = line_end + 2
        if self.done:
            self.rest = data[at:]
        else:
            self._buffer = data[at:]
        return pieces

    def _check_partial(self, line: bytes) -> None:
        limit = MAX_TRAILER_BYTES if self._state is _TRAILER else MAX_CHUNK_EXTENSION_BYTES + 18
        if len(line) > limit:
            raise MalformedMessage("chunk line too long")
        if b"\n" in line or b"\r" in line[:-1]:
            raise MalformedMessage("bare CR or LF in a chunk line")
        if self._state is _SIZE and _PARTIAL_SIZE.fullmatch(line) is None:
            raise MalformedMessage("bad chunk size")

    def _size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > MAX_CHUNK_EXTENSION_BYTES + 16:
            raise MalformedMessage("bad chunk size line")
        size = int(match.group(1), 16)
        self._overhead += len(line) + 4
        self.declared_bytes += size
        if self._overhead > MAX_CHUNK_OVERHEAD_BYTES + MAX_BODY_OVERHEAD_RATIO * self.declared_bytes:
            raise MalformedMessage("more framing than body")
        self._left = size
        self._state = _DATA if size else _TRAILER

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer += len(line) + 2
        if self._trailer > MAX_TRAILER_BYTES:
            raise MalformedMessage("trailers too long")
        if _TRAILER_LINE.fullmatch(line) is None:
            raise MalformedMessage("bad trailer line")


_SIZE, _DATA, _DATA_END, _TRAILER = "size", "data", "data end", "trailer"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_PARTIAL_SIZE = re.compile(rb"(?:[0-9A-Fa-f]{1,15}(?:[ \t]*(?:;[\t -~\x80-\xff]*)?)?)?\r?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")
