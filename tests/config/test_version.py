"""The version is the meaning: it moves with each value and with nothing else."""

from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from apigw.config.model import Config

Loaded = Callable[[Any], Config]


def test_it_is_twelve_hex_digits(loaded: Loaded, document: dict[str, Any]) -> None:
    version = loaded(document).version
    assert len(version) == 12 and int(version, 16) >= 0


def test_comments_order_and_files_change_nothing(loaded: Loaded, document: dict[str, Any], tmp_path: Path) -> None:
    document["routes"][0]["methods"] = ["GET", "PUT"]
    document["routes"].append(document["routes"][0] | {"route_id": "s", "pattern": "/s"})
    document["backends"].append({"name": "c", "instances": [{"host": "h", "port": 1}, {"host": "i", "port": 1}]})
    version = loaded(document).version
    assert loaded("# a comment\n" + yaml.safe_dump(document, sort_keys=True)).version == version
    document["routes"].reverse()
    document["backends"].reverse()
    document["backends"][0]["instances"].reverse()
    document["routes"][0]["methods"].reverse()
    assert loaded(document).version == version
    (tmp_path / "part.yaml").write_text(yaml.safe_dump({"routes": document.pop("routes")}))
    assert loaded(document | {"config": {"include": ["part.yaml"]}}).version == version


def test_a_default_written_out_changes_nothing_and_neither_does_the_hosts_name(
    loaded: Loaded, document: dict[str, Any]
) -> None:
    version = loaded(document).version
    assert loaded(document | {"gateway": {"workers": 1, "instance_name": "another"}}).version == version


@pytest.mark.parametrize(
    "change",
    [
        {"redis": {"url": "redis://:a@127.0.0.1"}},
        {"redis": {"url": "redis://:b@127.0.0.1"}},
        {"limits": {"max_body_bytes": 70_000}},
        {"circuit_breaker": {"recovery_steps": [0.5, 1]}},
        {"circuit_breaker": {"recovery_steps": [0.25, 1]}},
        {"owner": "team"},
    ],
)
def test_every_value_changes_it(loaded: Loaded, document: dict[str, Any], change: dict[str, Any]) -> None:
    assert loaded(document | change).version != loaded(document).version


def test_a_password_changes_it(loaded: Loaded, document: dict[str, Any]) -> None:
    versions = {loaded(document | {"redis": {"url": f"redis://:{word}@127.0.0.1"}}).version for word in "ab"}
    assert len(versions) == 2
