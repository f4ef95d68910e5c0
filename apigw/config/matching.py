"""Kinds that say which requests a route takes, and until when: patterns, prefixes, methods, dates."""

import re
from datetime import date, datetime, timezone
from urllib.parse import quote

from attrs import frozen

from apigw.config.kinds import Kind, Reading, Refused, text_of
from apigw.config.nodes import Node, Scalar, described
from apigw.config.problems import shown
from apigw.core.paths import AmbiguousPath, canonical
from apigw.names import METHODS

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # scope-token of RFC 6749 3.3
_HEADER_SAFE = re.compile(r"[!-~]{1,256}")


def _canonical_path(text: str) -> str:
    """The spelling in which requests for `text` arrive. Raises Refused."""
    if "?" in text or "#" in text:
        raise Refused("matches paths, which have no query and no fragment; '?' and '#' cannot match")
    try:
        return canonical(quote(text, safe="/%!$&'()*+,;=:@~-._\\").encode("ascii"))[0]
    except AmbiguousPath as error:
        raise Refused(f"cannot match: such requests are refused ({error.detail})") from None


@frozen
class Pattern(Kind[str]):
    """A canonical path, or a canonical prefix and "/*" (core/paths.py says what canonical is)."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "a path pattern such as /api/v2/users/*")
        if len(text) > 1024:
            raise Refused("is longer than 1024 characters")
        if text[0] != "/":
            raise Refused(f"must begin with '/', not {shown(text)}", "/" + text if text[0] != "*" else "/*")
        wildcard = text.endswith("/*")
        path = text[:-2] if wildcard else text
        if "*" in path:
            raise Refused(f"may have '*' only as its last segment, '/*', not {shown(text)}")
        # "/x" stands for what the wildcard takes, so that a slash before it is seen as doubled
        right = _canonical_path(path + "/x")[:-2] + "/*" if wildcard else _canonical_path(path)
        if right != text:
            raise Refused(f"cannot match {shown(text)}: requests arrive in another spelling", right)
        return text


@frozen
class Prefix(Kind[str]):
    """A path prefix of whole segments; "/" means none. Whether the pattern begins with it is checked later."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        if isinstance(node, Scalar) and node.value == "":
            return ""
        text = text_of(node, "a path prefix such as /api/v2")
        if text[0] != "/" or "*" in text:
            raise Refused(f"must be a path such as /api/v2, not {shown(text)}")
        text = text.rstrip("/")
        right = _canonical_path(text) if text else ""
        if right != text:
            raise Refused(f"cannot match {shown(text)}: requests arrive in another spelling", right)
        return text


@frozen
class Method(Kind[str]):
    """A request method that the gateway forwards, in upper case."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "a request method")
        if text == "CONNECT":
            raise Refused("cannot be CONNECT: the gateway opens no tunnels")
        if text not in METHODS:
            meant = reading.problems.nearest(text, METHODS - {"CONNECT"})
            raise Refused(f"must be a known request method in upper case, not {shown(text)}", meant)
        return text


@frozen
class Token(Kind[str]):
    """Visible ASCII without blanks: claims, topics, scopes, what goes into a header or a key."""

    scope: bool = False

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node)
        if not (_SCOPE if self.scope else _HEADER_SAFE).fullmatch(text):
            kind = "a scope (RFC 6749: no blank, quote or backslash)" if self.scope else "visible ASCII without blanks"
            raise Refused(f"must be {kind}, not {shown(text)}")
        return text


def day_start_s(day: str) -> int:
    """The epoch second at which an ISO date begins, UTC."""
    return int(datetime.fromisoformat(day).replace(tzinfo=timezone.utc).timestamp())


@frozen
class Day(Kind[str]):
    """An ISO date, kept as text."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, 'a date such as "2027-06-01"')
        try:
            if _DAY.fullmatch(text) and date.fromisoformat(text).year >= 1970:
                return text
        except ValueError:
            raise Refused(f"must be a date that exists, not {shown(text)}") from None
        raise Refused(f'must be a date such as "2027-06-01", not {shown(text)}')


@frozen
class Deprecation(Kind[bool | str]):
    """true, false, or the date since which it is so."""

    def read(self, node: Node, name: str, reading: Reading) -> bool | str:
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            raise Refused(f'must be true, false or a date such as "2027-06-01", not {described(node)}')
        return Day().read(node, name, reading)
