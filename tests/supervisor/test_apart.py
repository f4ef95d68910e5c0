"""Large configurations are read in a process of their own, with the same outcome."""

import time
from pathlib import Path

import pytest

from apigw.config import files
from apigw.errors import ConfigurationError
from apigw.supervisor import apart

HEAD = """
listeners: [{address: 127.0.0.1, port: 18080}]
backends: [{name: orders, instances: [{host: 127.0.0.1, port: 9001}]}]
routes:
"""
ROUTE = (
    "  - {{route_id: r{0}, pattern: /r{0}/*, methods: [GET], backend_service: {1}, "
    "auth_required: false, auth_type: none}}\n"
)


def written(folder: Path, routes: int, backend: str = "orders") -> Path:
    main_file = folder / "apigw.yaml"
    main_file.write_text(HEAD + "".join(ROUTE.format(number, backend) for number in range(routes)))
    return main_file


def test_a_large_configuration_is_the_same_read_here_or_apart(tmp_path: Path) -> None:
    main_file = written(tmp_path, 3000)
    assert main_file.stat().st_size > apart.LARGE_BYTES
    now_s = time.time()
    config = apart.load(main_file, hostname="gw-1", now_s=now_s)
    assert len(config.routes) == 3000
    assert config == files.load(main_file, hostname="gw-1", now_s=now_s)


def test_its_problems_come_with_file_and_line(tmp_path: Path) -> None:
    """As if it had been read here, and as many at once."""
    main_file = written(tmp_path, 3000, backend="ordres")
    with pytest.raises(ConfigurationError) as apart_says:
        apart.load(main_file, hostname="gw-1", now_s=time.time())
    with pytest.raises(ConfigurationError) as here_says:
        files.load(main_file, hostname="gw-1", now_s=time.time())
    assert str(apart_says.value) == str(here_says.value)
    assert "orders" in str(apart_says.value).splitlines()[0]


def test_a_small_one_costs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown by an interpreter that does not exist: a large one falls back to reading here."""
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    assert len(apart.load(written(tmp_path, 3), hostname="gw-1", now_s=time.time()).routes) == 3
    assert len(apart.load(written(tmp_path, 3000), hostname="gw-1", now_s=time.time()).routes) == 3000


def test_what_it_names_is_watched_as_if_it_had_been_read_here(tmp_path: Path) -> None:
    """A key set that is rewritten changes the fingerprint, though another process read the configuration."""
    main_file = written(tmp_path, 3000)
    key_set = tmp_path / "jwks.json"
    key_set.write_text('{"keys": []}')
    jwt = "auth: {jwt: {issuer: 'https://id.test', audience: a, jwks_file: jwks.json}}\n"
    main_file.write_text(jwt + main_file.read_text())
    config = apart.load(main_file, hostname="gw-1", now_s=time.time())
    before = files.fingerprint(main_file, config)
    key_set.write_text('{"keys": [], "new": 1}')
    assert files.fingerprint(main_file, config) != before
