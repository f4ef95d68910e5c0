"""Discovery of instances: what each kind of registry needs, what it has no use for, and what would be unsafe."""

import re

from apigw.config.addresses import is_loopback, split_url
from apigw.config.model import Discovery
from apigw.config.parse import Draft
from apigw.config.problems import listed, shown

# What makes sense for one type only; all others are for every type that is asked over HTTP, or for all.
_OWN = {
    "dns": ("port", "nameservers"),
    "consul": ("url", "tag", "datacenter", "token_file", "ca_file"),
    "etcd": ("endpoints", "prefix", "username", "password_file", "ca_file"),
    "kubernetes": ("url", "port", "namespace", "token_file", "ca_file"),
}
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)*[A-Za-z0-9_-]{1,63}\.?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def check_discovery(draft: Draft, now_s: float) -> None:
    """Each backend with `discovery`, by itself."""
    for backend in draft.config.backends:
        discovery = backend.discovery
        if discovery is not None and draft.sound(discovery, "type"):
            _Check(draft, discovery, f"backend {shown(backend.name)}: discovery").all()


class _Check:
    """One discovery; `name` begins its messages."""

    def __init__(self, draft: Draft, discovery: Discovery, name: str) -> None:
        self._draft = draft
        self._discovery = discovery
        self._name = name

    def all(self) -> None:
        self._foreign_keys()
        if self._draft.sound(self._discovery, "service"):
            self._service()
        self._place()
        self._credentials()
        for url in (self._discovery.url, *self._discovery.endpoints):
            if url is not None:
                self._url(url)

    def _refuse(self, key: str, message: str, suggestion: str | None = None) -> None:
        self._draft.refuse(self._discovery, key, f"{self._name}{message}", suggestion)

    def _foreign_keys(self) -> None:
        given = self._draft.site(self._discovery).lines
        own = _OWN[self._discovery.type]
        for key in dict.fromkeys(key for keys in _OWN.values() for key in keys):
            if key in given and key not in own:
                users = listed(kind for kind, keys in _OWN.items() if key in keys)
                self._refuse(key, f".{key} is for {users}, not for {self._discovery.type}")

    def _service(self) -> None:
        kind, service = self._discovery.type, self._discovery.service
        if kind == "dns" and not _DNS_NAME.fullmatch(service):
            self._refuse("service", f".service must be a DNS name, not {shown(service)}")
        elif kind == "kubernetes" and not _LABEL.fullmatch(service):
            message = f".service must be the name of a Kubernetes service, not {shown(service)}"
            self._refuse("service", f"{message}; its namespace has a key of its own" if "." in service else message)

    def _place(self) -> None:
        """The registry's address, which types have no default for."""
        discovery = self._discovery
        if discovery.type == "consul" and discovery.url is None and self._draft.sound(discovery, "url"):
            self._refuse("type", " of type consul needs a url, here or in config.consul")
        if discovery.type == "etcd" and not discovery.endpoints and self._draft.sound(discovery, "endpoints"):
            self._refuse("type", " of type etcd needs endpoints, here or in config.etcd")
        if discovery.type == "dns" and isinstance(discovery.port, str):
            self._refuse("port", f".port must be a number for dns, not {shown(discovery.port)}")
        if discovery.type == "kubernetes" and discovery.url is not None and discovery.namespace is None:
            self._refuse("url", " of type kubernetes with a url needs a namespace; only inside a cluster it is known")

    def _credentials(self) -> None:
        discovery = self._discovery
        if not self._draft.sound(discovery, "username", "password_file"):
            return
        if (discovery.username is None) != (discovery.password_file is None):
            key = "username" if discovery.password_file is None else "password_file"
            self._refuse(key, " needs username and password_file, or none of them")

    def _url(self, url: str) -> None:
        """The messages do not quote it: it may hold a password."""
        discovery = self._discovery
        key = "endpoints" if discovery.type == "etcd" else "url"
        parts = split_url(url)
        if parts is None or not self._draft.sound(discovery, key):
            return
        if parts.username is not None or parts.query:
            self._refuse(key, f".{key} must be scheme, host and port; credentials belong into a file")
        secret = discovery.token_file is not None or discovery.password_file is not None
        if parts.scheme == "http" and secret and not is_loopback(parts.hostname or ""):
            self._refuse(key, f".{key} must be https: credentials over plain http can be read on the way")
        if parts.scheme == "http" and discovery.ca_file is not None:
            self._refuse("ca_file", f".ca_file is of no use, {key} is plain http")
