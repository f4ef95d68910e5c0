"""One short name for what a configuration means: equal meaning, equal version, on every host."""

import hashlib
import json
from typing import Any

import attrs

from apigw.config.model import Config

VERSION_CHARS = 12
# Not meaning: who runs it, where it was read from, and which files it was spread over.
_IDENTITY = {"Config": {"version", "sources"}, "GatewaySection": {"instance_name"}, "ConfigSection": {"include"}}
# Lists whose order is meaning: the first certificate is the default, steps follow each other.
_ORDERED = {"certificates", "recovery_steps"}


def version_of(config: Config) -> str:
    """The first 12 hex digits of SHA-256 over canonical JSON. Order and spread over files change nothing."""
    return hashlib.sha256(_text(_plain(config, "")).encode("utf-8")).hexdigest()[:VERSION_CHARS]


def _plain(value: Any, key: str) -> Any:
    if attrs.has(type(value)):
        left_out = _IDENTITY.get(type(value).__name__, set())
        names = _attributes(type(value))
        return {name: _plain(getattr(value, name), name) for name in names if name not in left_out}
    if isinstance(value, tuple):
        items = [_plain(item, "") for item in value]
        return items if key in _ORDERED else sorted(items, key=_text)
    if isinstance(value, dict):
        return {name: _plain(item, "") for name, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 10 and 10.0 are one number
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _attributes(record: type[attrs.AttrsInstance]) -> list[str]:
    return [each.name for each in attrs.fields(record)]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
