"""One spelling for every path, so that the route that was authorised is the path that is forwarded.

Note [Canonical paths]
  A target is refused (400) rather than guessed at when two servers could read it in two ways: an encoded
  slash, backslash or NUL, a raw backslash, an encoded control character, a bad %-escape, bytes that are no
  UTF-8 (overlong forms decode to "/" in sloppy servers), a dot segment with a path parameter ("..;x"), or
  ".." above the root. Otherwise: repeated slashes become one, then dot segments go (RFC 3986 5.2.4),
  %-escapes of unreserved characters are decoded (6.2.2.2), all others have upper-case hex (6.2.2.1), and
  what RFC 3986 does not allow but browsers send as it is ([ ] | ^ { } " < > `) is escaped.
  The result is never decoded again: %252e stays %252e.
"""

import re

from apigw.errors import BadRequest

# A target that is canonical as it stands, the common case: no segment starts with ".", no "//", no "%".
_PLAIN = re.compile(rb"((?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*)*/?)(?:\?([!\"$-~]*))?")
_QUERY = re.compile(rb"[!\"$-~]*")  # visible ASCII but "#"; opaque otherwise
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_AUTHORITY = re.compile(
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?"
    rb"|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?|([\[\]|^{}\"<>`])")
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
    match = _PLAIN.fullmatch(target)
    if match is not None and match.group(1):
        path, query = match.groups()
        return path.decode("ascii"), query.decode("ascii") if query else ""
    if target[:1] != b"/":
        raise AmbiguousPath("target does not begin with a slash")
    raw, _, raw_query = target.partition(b"?")
    if _QUERY.fullmatch(raw_query) is None:
        raise AmbiguousPath("query has a character that needs escaping")
    if _PATH.fullmatch(raw) is None:
        raise AmbiguousPath("path has a character that needs escaping")
    return _without_dots(_normal_escapes(raw)), raw_query.decode("ascii")


def _normal_escapes(raw: bytes) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        digits, bare = match.groups()
        if bare:
            return b"%%%02X" % bare[0]
        if digits is None:
            raise AmbiguousPath("bad %-escape")
        octet = int(digits, 16)
        if octet in _UNRESERVED:
            return bytes((octet,))
        if octet < 0x20 or octet == 0x7F:
            raise AmbiguousPath("encoded control character")
        if octet in b"/\\":
            raise AmbiguousPath("encoded slash or backslash")
        return b"%%%02X" % octet

    escaped = _ESCAPE.sub(replace, raw)
    try:
        _ESCAPED_OCTET.sub(lambda match: bytes((int(match.group(1), 16),)), escaped).decode("utf-8")
    except UnicodeDecodeError:
        raise AmbiguousPath("path is not UTF-8") from None
    return escaped


_ESCAPED_OCTET = re.compile(rb"%([0-9A-F]{2})")
_DOT_PARAMETER = re.compile(r"\.\.?(?:;|%3B)")


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
