"""One spelling for every path, so that the route that was authorised is the path that is forwarded.

Note [Canonical paths]
  A target is refused (400) rather than guessed at when two servers could read it in two ways: an encoded
  slash, backslash or NUL, a raw backslash, an encoded control character, a bad %-escape, bytes that are no
  UTF-8 (overlong forms decode to "/" in sloppy servers), a dot segment with a path parameter ("..;x"), or
  ".." above the root. Otherwise: repeated slashes become one, then dot segments go (RFC 3986 5.2.4),
  %-escapes of unreserved characters are decoded (6.2.2.2), all others have upper-case hex (6.2.2.1), and
  what RFC 3986 does not allow but browsers send as it is ([ ] | ^ { } " < > `) is escaped.
  The result is never decoded again: %252e stays %252e. A backend gets the hex digits in the client's case, as
  from other proxies; in nothing else does its path differ from the one that was routed.
"""

import re
from urllib.parse import unquote_to_bytes

from apigw.errors import BadRequest

# A target that is canonical as it stands, the common case: no segment starts with ".", no "//", no "%".
_PLAIN = re.compile(rb"((?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*)*/?)(?:\?([!\"$-~]*))?")
_QUERY = re.compile(rb"[!\"$-~]*")  # visible ASCII but "#"; opaque otherwise
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_AUTHORITY = re.compile(
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?"
    rb"|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH = re.compile(rb"[!$-;=?-Z_a-z~%]*(?:[\[\]|^{}\"<>`][!$-;=?-Z_a-z~%]*)*")


class AmbiguousPath(BadRequest):
    """400: two servers could read this target differently. The detail names the reason, for the log."""

    message = "The request target is malformed or ambiguous."

    def __init__(self, detail: str) -> None:
        super().__init__(detail=detail, reason="bad_path")


def split_absolute(target: bytes) -> tuple[bytes | None, bytes]:
    """(authority, origin-form) of an absolute-form target, (None, target) of any other (RFC 9112 3.2.2)."""
    if target[:1] == b"/":
        return None, target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise AmbiguousPath("target is neither a path nor an http(s) URI")
    authority, rest = match.groups()
    if not valid_authority(authority):
        raise AmbiguousPath("bad authority in the target")
    return authority, rest if rest[:1] == b"/" else b"/" + rest


def valid_authority(authority: bytes) -> bool:
    """Whether it is `host[:port]` without userinfo (RFC 9110 7.2); a port is a number up to 65535."""
    if len(authority) > 262 or _AUTHORITY.fullmatch(authority) is None:
        return False
    port = authority.rpartition(b"]")[2].rpartition(b":")[2] if b":" in authority.rpartition(b"]")[2] else b"0"
    return int(port) <= 65535


def canonical(target: bytes) -> tuple[str, str]:
    """(path, query) of an origin-form target. Raises AmbiguousPath. See Note [Canonical paths]."""
    path, query, _ = canonical_and_wire(target)
    return path, query


def canonical_and_wire(target: bytes) -> tuple[str, str, str]:
    """(path, query, path as a backend gets it). Raises AmbiguousPath. See Note [Canonical paths]."""
    match = _PLAIN.fullmatch(target)
    if match is not None and match.group(1):
        path, query = match.groups()
        text = path.decode("ascii")
        return text, query.decode("ascii") if query else "", text
    if target[:1] != b"/":
        raise AmbiguousPath("target does not begin with a slash")
    raw, _, raw_query = target.partition(b"?")
    if _QUERY.fullmatch(raw_query) is None:
        raise AmbiguousPath("query has a character that needs escaping")
    if _PATH.fullmatch(raw) is None:
        raise AmbiguousPath("path has a character that needs escaping")
    wire = _without_dots(_normal_escapes(raw))
    first, *pieces = wire.split("%")
    path = "".join([first, *(f"%{piece[:2].upper()}{piece[2:]}" for piece in pieces)])
    return path, raw_query.decode("ascii"), wire


def _normal_escapes(raw: bytes) -> bytes:
    """Split and look up instead of a call for each escape: 8 KiB of escapes cost less than a millisecond."""
    first, *pieces = raw.split(b"%")
    parts = [first]
    for piece in pieces:
        normal = _ESCAPES.get(piece[:2])
        if normal is None:
            raise AmbiguousPath(_refusal(piece[:2]))
        parts.append(normal)
        parts.append(piece[2:])
    escaped = b"".join(parts)
    try:
        unquote_to_bytes(escaped).decode("utf-8")
    except UnicodeDecodeError:
        raise AmbiguousPath("path is not UTF-8") from None
    for bare, escape in _BARE:
        escaped = escaped.replace(bare, escape)
    return escaped


def _acceptable_escapes() -> dict[bytes, bytes]:
    """The two digits of each acceptable escape, in any case, and what stands for it in a canonical path."""
    table = {}
    for octet in set(range(0x20, 0x100)) - {0x7F} - set(b"/\\"):
        for high in {f"{octet >> 4:x}", f"{octet >> 4:X}"}:
            for low in {f"{octet & 15:x}", f"{octet & 15:X}"}:
                digits = f"{high}{low}".encode("ascii")
                table[digits] = bytes((octet,)) if octet in _UNRESERVED else b"%" + digits
    return table


def _refusal(digits: bytes) -> str:
    if _HEX.fullmatch(digits) is None:
        return "bad %-escape"
    return "encoded slash or backslash" if int(digits, 16) in b"/\\" else "encoded control character"


_ESCAPES = _acceptable_escapes()
_HEX = re.compile(rb"[0-9A-Fa-f]{2}")
_BARE = [(bytes((octet,)), b"%%%02X" % octet) for octet in b'[]|^{}"<>`']
_DOT_PARAMETER = re.compile(r"\.\.?(?:;|%3[Bb])")


def _without_dots(escaped: bytes) -> str:
    kept: list[str] = []
    segments = escaped.decode("ascii").split("/")[1:]
    for segment in segments:
        if segment == "..":
            if not kept:
                raise AmbiguousPath("path leaves the root")
            kept.pop()
        elif segment not in ("", "."):
            if segment[0] == "." and _DOT_PARAMETER.match(segment):
                raise AmbiguousPath("dot segment with a parameter")
            kept.append(segment)
    slash = "/" if kept and segments[-1] in ("", ".", "..") else ""
    return "/" + "/".join(kept) + slash
