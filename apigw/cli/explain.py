"""`apigwctl explain METHOD URL`: what a gateway with this configuration would do with a request, and why."""

import time
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import click

from apigw.cli.admin import ask
from apigw.cli.credentials import StoredKeys, TokenKeys
from apigw.cli.explanation import Explainer, Explanation
from apigw.cli.refusals import Refused, warn
from apigw.cli.revocation_store import in_force
from apigw.cli.settings import Settings
from apigw.cli.show import document, facts, json_option
from apigw.config.model import Config
from apigw.config.problems import shown
from apigw.config.snapshot import Snapshot
from apigw.config.validate import validated
from apigw.core.revocations import Revocations
from apigw.errors import StoreDown
from apigw.names import METHODS
from apigw.stages.authentication import Authentication, token_policy

MAX_HEADER_FILE_BYTES: Final = 1_048_576


@click.command()
@click.argument("method", help="GET, POST, ...")
@click.argument("url", help="http(s)://HOST/PATH, or /PATH.")
@click.option("-H", "--header", "headers", multiple=True, metavar="HEADER", help="'NAME: VALUE', or @FILE; repeat.")
@click.option("--from", "peer_ip", metavar="IP", default="127.0.0.1", show_default=True, help="Who connects.")
@json_option
@click.pass_obj
def explain(settings: Settings, method: str, url: str, headers: tuple[str, ...], peer_ip: str, as_json: bool) -> None:
    """Every stage's decision for one request, without sending it: by the configuration's files, keys and database."""
    head, secure = _head(method, url, headers)
    try:
        peer_ip = str(ip_address(peer_ip))
    except ValueError:
        raise click.BadParameter(f"{shown(peer_ip)} is no IP address", param_hint="--from") from None
    draft, now_s = settings.draft, time.time()
    config = validated(draft, now_s)
    keys = None if config.jwt is None else TokenKeys(config.jwt)
    api_keys = None if config.api_keys is None else StoredKeys(config.api_keys, time.time)
    revoked = _revoked(config, now_s)
    authentication = Authentication(keys, token_policy(config.jwt), time.time, api_keys, revoked)
    explanation = Explainer(Snapshot(config), authentication, draft.place, now_s).explain(head, peer_ip, secure)
    running = _running(settings, config.version)
    instances = _instances(running, explanation.backend)
    if as_json:
        document({"version": config.version, **attrs.asdict(explanation), "instances": instances})
        return
    facts([*((step.stage, step.decision) for step in explanation.steps), *_of_instances(instances)])
    print(f"\n{_outcome(explanation)}")


def _head(method: str, url: str, headers: tuple[str, ...]) -> tuple[bytes, bool]:
    """(the request's head, whether it comes over TLS). Raises UsageError."""
    if method not in METHODS and method.upper() in METHODS:
        raise click.UsageError(f"Methods are in upper case; did you mean {shown(method.upper())}?")
    secure, host, target = True, "localhost", url
    if not url.startswith("/"):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise click.UsageError(f"{shown(url)} is neither http(s)://HOST/PATH nor /PATH")
        secure, host = parts.scheme == "https", parts.netloc
        target = url[len(parts.scheme) + 3 + len(host) :]
    target = target.partition("#")[0]  # no client sends it
    target = target if target.startswith("/") else f"/{target}"
    given = [line.partition(":") for header in headers for line in _lines_of(header)]
    for name, colon, _ in given:
        if not name or not colon:
            raise click.UsageError("A header is 'NAME: VALUE'")
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [] if any(name.lower() == "host" for name, _, _ in given) else [f"Host: {host}"]
    lines += [f"{name}: {value.strip()}" for name, _, value in given]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"), secure


def _lines_of(header: str) -> list[str]:
    """The header itself, or for `@FILE` and `@-` the lines there: a secret on a command line is seen by others."""
    if not header.startswith("@"):
        return [header]
    try:
        with click.open_file(header[1:], errors="surrogateescape") as file:
            return [line for line in file.read(MAX_HEADER_FILE_BYTES).splitlines() if line]
    except OSError as error:
        raise Refused(f"{header[1:]}: {error.strerror}") from None


def _revoked(config: Config, now_s: float) -> Revocations:
    """The revocation list as it is in Redis; a word when it cannot be read, since then it says too little."""
    revoked = Revocations()
    if config.redis is not None and config.jwt is not None:
        try:
            revoked.add(in_force(config.redis, now_s))
        except StoreDown as down:
            warn(f"which tokens are revoked is not known: {down}")
    return revoked


def _running(settings: Settings, version: str) -> dict[str, Any] | None:
    """/status, if a gateway runs here; a word when it has another configuration."""
    try:
        found = ask(settings, "/status")
    except Refused:
        return None
    serving = found.get("config", {}).get("version")
    if serving != version:
        warn(f"the files have version {version}, the running gateway serves {serving}")
    return found


def _instances(running: dict[str, Any] | None, backend: str | None) -> list[dict[str, Any]] | None:
    """The backend's instances as the running gateway sees them; None when nobody can say."""
    if running is None or backend is None:
        return None
    found: list[dict[str, Any]] | None = running.get("backends", {}).get(backend, {}).get("instances")
    return found


def _of_instances(instances: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    return [
        ("instance", f"{one.get('instance')} is {'up' if one.get('up') else 'OUT: ' + str(one.get('why'))}")
        for one in instances or ()
    ]


def _outcome(explanation: Explanation) -> str:
    if explanation.backend is not None:
        return f"Goes to {explanation.backend}, unless the moment is against it (load, limits, instances)."
    if explanation.error is not None:
        return f"Answer: {explanation.status} {explanation.error}."
    return f"Answer: {explanation.status}, by the gateway itself."
