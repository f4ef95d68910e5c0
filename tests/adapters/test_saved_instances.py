"""The last list of a backend on disk: replaced as a whole, judged when read, and never in the way."""

import os
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import pytest_twisted

from apigw.adapters.saved_instances import SavedInstances
from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Discovery
from apigw.core.discovery import Entry
from tests.adapters.registry_world import NOW_S, REACTOR
from tests.logs import captured_lines
from tests.servers import until
from tests.threadless import Threadless

WANTED = Wanted("orders", Discovery("etcd", "orders", endpoints=("http://10.9.9.9:2379",)))
LIST = (Entry("10.0.0.1", 80), Entry("10.0.0.2", 80, 5))


@pytest.fixture
def saved(tmp_path: Path) -> SavedInstances:
    return SavedInstances(REACTOR, tmp_path, lambda: NOW_S)


async def written(saved: SavedInstances) -> None:
    await until(lambda: not saved._writing, REACTOR)


@pytest_twisted.ensureDeferred
async def test_what_is_saved_is_read_again(saved: SavedInstances, tmp_path: Path) -> None:
    assert saved.load(WANTED) is None
    saved.save(WANTED, LIST)
    await written(saved)
    found = saved.load(WANTED)
    assert found is not None and (found.entries, found.saved_epoch_s) == (LIST, NOW_S)
    assert os.listdir(tmp_path / "discovery") == ["orders.json"], "and nothing is left over"


@pytest_twisted.ensureDeferred
async def test_what_a_killed_process_left_half_written_goes(saved: SavedInstances, tmp_path: Path) -> None:
    saved.save(WANTED, LIST)
    await written(saved)
    half = tmp_path / "discovery" / ".orders.json.k2xq_9"
    half.write_bytes(b"{")
    os.utime(half, (1, 1))
    assert saved.load(WANTED) is not None
    assert os.listdir(tmp_path / "discovery") == ["orders.json"]


@pytest_twisted.ensureDeferred
async def test_of_many_lists_in_a_moment_the_last_one_is_on_disk(saved: SavedInstances) -> None:
    for number in range(1, 50):
        saved.save(WANTED, (Entry(f"10.0.0.{number}", 80),))
    await written(saved)
    found = saved.load(WANTED)
    assert found is not None and found.entries == (Entry("10.0.0.49", 80),)


@pytest_twisted.ensureDeferred
async def test_a_list_of_another_service_is_not_used_and_one_of_a_registry_that_moved_is(
    saved: SavedInstances,
) -> None:
    saved.save(WANTED, LIST)
    await written(saved)
    discovery = WANTED.discovery
    moved = attrs.evolve(WANTED, discovery=attrs.evolve(discovery, endpoints=("http://10.8.8.8:2379",)))
    assert saved.load(moved) is not None
    for change in ({"service": "users"}, {"prefix": "/other/"}, {"type": "consul", "url": "http://10.9.9.9"}):
        changed: Any = change
        assert saved.load(attrs.evolve(WANTED, discovery=attrs.evolve(discovery, **changed))) is None


@pytest_twisted.ensureDeferred
async def test_the_rules_for_hosts_hold_for_a_file_too(saved: SavedInstances, tmp_path: Path) -> None:
    saved.save(WANTED, LIST)
    await written(saved)
    path = tmp_path / "discovery" / "orders.json"
    document = orjson.loads(path.read_bytes())
    document["instances"] += [{"host": "169.254.169.254", "port": 80, "weight": 1}]
    path.write_bytes(orjson.dumps(document))
    found = saved.load(WANTED)
    assert found is not None and found.entries == LIST


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 2, "registry": "x"}', b"\xff" * 100, b"x" * 2_000_000],
)
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_no_list_is_not_used(saved: SavedInstances, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "discovery").mkdir()
    (tmp_path / "discovery" / "orders.json").write_bytes(content)
    assert saved.load(WANTED) is None


@pytest.mark.parametrize("change", [{"saved_at": None}, {"instances": 7}, {"instances": [7]}, {"instances": []}])
@pytest_twisted.ensureDeferred
async def test_a_file_that_somebody_edited_is_not_used(
    saved: SavedInstances, tmp_path: Path, change: dict[str, Any]
) -> None:
    saved.save(WANTED, LIST)
    await written(saved)
    path = tmp_path / "discovery" / "orders.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | change))
    assert saved.load(WANTED) is None


@pytest_twisted.ensureDeferred
async def test_a_folder_that_is_not_there_hurts_nobody_and_is_used_when_it_is(tmp_path: Path) -> None:
    saved = SavedInstances(REACTOR, tmp_path / "gone", lambda: NOW_S)
    saved.save(WANTED, LIST)
    await written(saved)
    assert "No such file" in str(saved.last_error) and saved.load(WANTED) is None
    (tmp_path / "gone").mkdir()
    saved.save(WANTED, LIST)
    await written(saved)
    assert saved.last_error is None and saved.load(WANTED) is not None


@pytest_twisted.ensureDeferred
async def test_a_place_that_cannot_even_be_looked_at_hurts_nobody_and_is_told(tmp_path: Path) -> None:
    """Its name is too long: root may look into every folder."""
    folder = tmp_path / ("x" * 300)
    saved = SavedInstances(REACTOR, folder, lambda: NOW_S)
    with captured_lines() as lines:
        assert saved.load(WANTED) is None
    assert any(str(folder) in line and "is not used: Unreadable: cannot be read" in line for line in lines)
    saved.save(WANTED, LIST)
    await written(saved)
    assert "too long" in str(saved.last_error)


def test_of_a_file_that_is_not_there_nothing_is_said(saved: SavedInstances) -> None:
    with captured_lines() as lines:
        assert saved.load(WANTED) is None
    assert lines == []


@pytest_twisted.ensureDeferred
async def test_a_list_that_no_thread_could_be_started_for_is_told_and_the_next_is_saved(tmp_path: Path) -> None:
    saved = SavedInstances(Threadless(REACTOR), tmp_path, lambda: NOW_S)
    saved.save(WANTED, LIST)
    await written(saved)
    assert "can't start new thread" in str(saved.last_error) and saved.load(WANTED) is None
    saved.save(WANTED, LIST)
    await written(saved)
    assert saved.last_error is None and saved.load(WANTED) is not None


@pytest_twisted.ensureDeferred
async def test_a_place_where_nothing_can_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """Here a folder stands where the file should be: root can write everywhere else."""
    saved = SavedInstances(REACTOR, tmp_path, lambda: NOW_S)
    (tmp_path / "discovery" / "orders.json").mkdir(parents=True)
    saved.save(WANTED, LIST)
    await written(saved)
    assert saved.last_error is not None and os.listdir(tmp_path / "discovery") == ["orders.json"]


def test_a_name_of_dots_stays_in_its_folder(tmp_path: Path) -> None:
    saved = SavedInstances(REACTOR, tmp_path, lambda: NOW_S)
    for name in (".", "..", "..."):
        assert saved._path(name).parent == tmp_path / "discovery"
