"""Where Redis is, in one line: one server, a master that sentinels know, or a cluster; in clear or over TLS.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]                                        rediss://
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/MASTER[/DATABASE]       rediss+sentinel://
    redis+cluster://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]                          rediss+cluster://

The second "s" of rediss is TLS, to sentinels too. User and password are %-encoded; they are those of Redis itself,
sentinels have their own (keys of the section redis). Ports are 6379, and 26379 for sentinels.
"""

import ipaddress
import re
from typing import Final
from urllib.parse import unquote

from attrs import field, frozen

from apigw.config.addresses import HOST_NAME, URL_TEXT
from apigw.config.kinds import Kind, Reading, Refused, text_of
from apigw.config.nodes import Node
from apigw.config.problems import listed
from apigw.core.redaction import HIDDEN

SINGLE: Final = "single"
SENTINEL: Final = "sentinel"
CLUSTER: Final = "cluster"

_SCHEMES: Final = {
    "redis": (SINGLE, False),
    "rediss": (SINGLE, True),
    "redis+sentinel": (SENTINEL, False),
    "rediss+sentinel": (SENTINEL, True),
    "redis+cluster": (CLUSTER, False),
    "rediss+cluster": (CLUSTER, True),
}
_DEFAULT_PORTS: Final = {SINGLE: 6379, SENTINEL: 26_379, CLUSTER: 6379}
_MAX_HOSTS: Final = 32
_MASTER = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DATABASE = re.compile(r"[0-9]{1,5}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

Place = tuple[str, int]  # host, without the brackets of IPv6, and port


@frozen
class RedisURL:
    """A URL that was understood. `hosts` are the server, the sentinels, or some nodes of the cluster.

    kind: SINGLE, SENTINEL or CLUSTER. user: None for the default one. master: its name, of SENTINEL only.
    """

    kind: str
    tls: bool
    hosts: tuple[Place, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    master: str = ""

    @classmethod
    def of(cls, text: str) -> "RedisURL":
        """Raises ValueError: a sentence that completes "redis.url ..." and never quotes the URL or its password."""
        if not URL_TEXT.fullmatch(text):
            raise ValueError("is not a valid URL")
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in _SCHEMES:
            raise ValueError(f"must begin with {listed(name + '://' for name in _SCHEMES)}")
        if "?" in rest or "#" in rest:
            raise ValueError(
                "has a query or a fragment, which is not understood; ? and # of a password are written %3F and %23"
            )
        kind, tls = _SCHEMES[scheme.lower()]
        authority, _, path = rest.partition("/")
        credentials, at, hosts = authority.rpartition("@")
        if "@" in path:
            raise ValueError("has an @ after its first /; a / of a password is written %2F")
        user, password = _credentials(credentials) if at else (None, None)
        master, database = _path(kind, path.split("/") if path else [])
        return cls(kind, tls, _hosts(kind, hosts), user, password, database, master)


def _credentials(text: str) -> tuple[str | None, str]:
    user, _, password = text.partition(":")
    if _BAD_PERCENT.search(text):
        raise ValueError("has a % in its user or password that begins no %XX; a % itself is written %25")
    if not password:
        raise ValueError("has a user and no password; a password alone is written redis://:PASSWORD@HOST")
    return unquote(user) or None, unquote(password)


def _hosts(kind: str, text: str) -> tuple[Place, ...]:
    hosts = tuple(_place(one, _DEFAULT_PORTS[kind]) for one in text.split(","))
    if kind == SINGLE and len(hosts) > 1:
        raise ValueError("names several hosts, which only redis+sentinel:// and redis+cluster:// have")
    if len(set(hosts)) < len(hosts):
        raise ValueError("names a host twice")
    if len(hosts) > _MAX_HOSTS:
        raise ValueError(f"names more than {_MAX_HOSTS} hosts")
    return hosts


def _place(text: str, default_port: int) -> Place:
    if not text:
        raise ValueError("names no host, or has a comma too many")
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("has an IPv6 address that is not written [ADDRESS]:PORT")
        port = port[1:] if port else str(default_port)
    else:
        host, colon, port = text.partition(":")
        port = port if colon else str(default_port)
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        raise ValueError("has a port that is not a number from 1 to 65535; IPv6 addresses are written [ADDRESS]:PORT")
    return _host(host, bracketed=text.startswith("[")), int(port)


def _host(text: str, *, bracketed: bool) -> str:
    if bracketed or re.fullmatch(r"[0-9.]+", text):
        if "%" in text:
            raise ValueError("has an IP address with a zone")
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise ValueError("has an IP address that is none") from None
        if bracketed != (address.version == 6):
            raise ValueError("has an IPv4 address in brackets")
        return str(address)
    if len(text) > 253 or not HOST_NAME.fullmatch(text):
        raise ValueError("has a host that is neither a name nor an IP address")
    return text.lower()


def _path(kind: str, parts: list[str]) -> tuple[str, int]:
    """(name of the master, number of the database)"""
    master = ""
    if kind == SENTINEL:
        master = parts.pop(0) if parts else ""
        if not _MASTER.fullmatch(master):
            raise ValueError("must name the master after its sentinels, as in redis+sentinel://HOST:26379/mymaster")
    database = parts[0] if parts else ""
    if len(parts) > 1 or (database and not _DATABASE.fullmatch(database)):
        raise ValueError(f"must end with the number of a database, as in {'/mymaster/0' if master else 'HOST:6379/0'}")
    if kind == CLUSTER and int(database or 0):
        raise ValueError("names a database, but a cluster has only number 0")
    return master, int(database or 0)


def redacted_redis_url(text: str) -> str:
    """`text` with its password as "***"; nothing of it when it is not understood."""
    try:
        url = RedisURL.of(text)
    except ValueError:
        return HIDDEN
    if url.password is None:
        return text
    scheme, _, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0]}:{HIDDEN}@{hosts}{slash}{path}"


@frozen
class RedisURLText(Kind[str]):
    """A URL that RedisURL.of() understands, kept as it is written."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "a URL of Redis")
        try:
            RedisURL.of(text)
        except ValueError as error:
            scheme = text.partition(":")[0].lower()
            meant = None if scheme in _SCHEMES else reading.problems.nearest(scheme, tuple(_SCHEMES))
            raise Refused(str(error), meant) from None
        return text

    def show(self, value: str) -> object:
        return redacted_redis_url(value)
