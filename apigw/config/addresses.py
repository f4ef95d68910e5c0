"""Kinds that name a place: hosts, addresses, networks, URLs, origins, files."""

import ipaddress
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from attrs import frozen

from apigw.config.kinds import Kind, Reading, Refused, text_of
from apigw.config.nodes import Node
from apigw.config.problems import listed, shown
from apigw.core.redaction import HIDDEN, redacted_query

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
URL_TEXT = re.compile(r"[!-~]{1,2048}")
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_NAMESERVER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether `host` can be nothing but this machine: 127.0.0.0/8, ::1 or localhost."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@frozen
class IPAddress(Kind[str]):
    """An address to listen on: no name, since a name can have several or change."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "an IP address")
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            meant = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(text)
            raise Refused(f"must be an IP address, not {shown(text)}", meant) from None


@frozen
class Network(Kind[IPv4Network | IPv6Network]):
    """A network in CIDR form, or one address."""

    def read(self, node: Node, name: str, reading: Reading) -> IPv4Network | IPv6Network:
        text = text_of(node, "a network such as 10.0.0.0/8")
        if "%" in text:
            raise Refused(f"must be a network without a zone (%...), not {shown(text)}")
        try:
            return ipaddress.ip_network(text)
        except ValueError:
            pass
        try:
            meant = str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise Refused(f"must be a network such as 10.0.0.0/8, not {shown(text)}") from None
        raise Refused(f"must be a network, but {shown(text)} has host bits set", meant)

    def show(self, value: IPv4Network | IPv6Network) -> object:
        return str(value)


@frozen
class Host(Kind[str]):
    """A host name or an IP address, IPv6 without brackets."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "a host name or an IP address")
        if ":" in text or re.fullmatch(r"[0-9.]+", text):
            try:
                return str(ipaddress.ip_address(text))
            except ValueError:
                hint = "; the port has a key of its own" if text.count(":") == 1 else ""
                raise Refused(f"must be a host name or an IP address, not {shown(text)}{hint}") from None
        if len(text) > 253 or not HOST_NAME.fullmatch(text):
            raise Refused(f"must be a host name or an IP address, not {shown(text)}")
        return text.lower()


@frozen
class Nameserver(Kind[str]):
    """The address of a name server, with a port where it is not 53: 10.0.0.2, 10.0.0.2:8600, [fd00::2]:53."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "an IP address, with :PORT if need be")
        if nameserver_of(text) is None:
            raise Refused(f"must be an IP address, with :PORT if need be, not {shown(text)}")
        return text


def nameserver_of(text: str) -> tuple[str, int] | None:
    """Address and port of a name server, None when it is none."""
    match = _NAMESERVER.fullmatch(text)
    host, port = (match[1] or match[2], int(match[3])) if match else (text, 53)
    try:
        return (str(ipaddress.ip_address(host)), port) if 1 <= port <= 65_535 else None
    except ValueError:
        return None


@frozen
class FilePath(Kind[Path]):
    """A path; a relative one starts at the folder of the file it is written in."""

    def read(self, node: Node, name: str, reading: Reading) -> Path:
        text = text_of(node, "a path")
        if len(text) > 4096:
            raise Refused("is longer than 4096 characters")
        return (reading.folder / text).absolute()

    def show(self, value: Path) -> object:
        return str(value)


@frozen
class URL(Kind[str]):
    """An absolute URL of one of `schemes`. Messages never quote it: it may hold a password."""

    schemes: tuple[str, ...]
    needs_host: bool = True

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, f"a URL ({listed(self.schemes)})")
        parts = split_url(text) if URL_TEXT.fullmatch(text) else None
        if parts is None:
            raise Refused("is not a valid URL")
        if parts.scheme not in self.schemes or "://" not in text:
            meant = reading.problems.nearest(parts.scheme, self.schemes)
            raise Refused(f"must begin with {listed(scheme + '://' for scheme in self.schemes)}", meant)
        if self.needs_host and not parts.hostname:
            raise Refused("names no host")
        if parts.fragment:
            raise Refused("has a fragment (#...), which is never sent")
        return text

    def show(self, value: str) -> object:
        return redacted_url(value)


@frozen
class DatabaseURL(URL):
    """A database: sqlite:///FILE, relative to the folder of the configuration, or postgresql://HOST/NAME."""

    schemes: tuple[str, ...] = ("sqlite", "postgresql")
    needs_host: bool = False

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = super().read(node, name, reading)
        if not text.startswith("sqlite:"):
            return text
        host, _, file = text.removeprefix("sqlite://").partition("/")
        if host:
            raise Refused("names a host, which SQLite has not; sqlite:///FILE or sqlite:////DIR/FILE")
        if not file or file.startswith(":"):
            raise Refused("names no file; workers and apigwctl share it: sqlite:////DIR/FILE")
        return f"sqlite:///{(reading.folder / file).absolute()}"


def split_url(text: str) -> SplitResult | None:
    """The parts of a URL, or None when it has no meaning (a port that is no number, a bad IPv6 address)."""
    try:
        parts = urlsplit(text)
        if parts.port == 0:
            return None
        return parts
    except ValueError:
        return None


def redacted_url(url: str) -> str:
    """`url` with its password, or a user name that may be a token, and credentials of its query as "***"."""
    parts = split_url(url)
    if parts is None:
        return HIDDEN
    credentials, at, host = parts.netloc.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        host = f"{user if colon else ''}{':' if colon else ''}{HIDDEN}@{host}"
    return urlunsplit((parts.scheme, host, parts.path, redacted_query(parts.query), "")) if parts.netloc else url


@frozen
class Origin(Kind[str]):
    """What a browser sends as Origin: scheme://host[:port] in lower case, without a path or a default port."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "an origin such as https://app.example.com")
        if text == "*":
            raise Refused("must name origins: '*' with credentials would let any site act for the user")
        match = _ORIGIN.fullmatch(text.rstrip("/"))
        if match is None or int(match[3] or 1) not in range(1, 65536):
            meant = split_url(text)
            origin = f"{meant.scheme}://{meant.netloc}".lower() if meant and meant.netloc else None
            raise Refused(f"must be scheme://host or scheme://host:port, not {shown(text)}", origin)
        scheme, host, port = match.groups()
        scheme, host = scheme.lower(), host.lower()
        default = port is not None and _DEFAULT_PORTS.get(scheme) == int(port)
        sent = f"{scheme}://{host}" + (f":{int(port)}" if port and not default else "")
        if sent != text:
            raise Refused(f"can never match {shown(text)}, browsers send it differently", sent)
        return text
