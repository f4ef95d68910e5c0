"""The registries of a configuration: which are asked after a reload, whose lists serve, and what an operator sees."""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from apigw.adapters.discovery import TYPES, Discovery
from apigw.adapters.saved_instances import SavedInstances
from apigw.adapters.wanted_instances import Wanted
from apigw.config.declarations import DISCOVERY
from apigw.config.fields import Field
from apigw.config.model import AdminSection, Backend, Instance, Listener
from apigw.config.model import Discovery as Section
from apigw.core.discovery import Entry
from apigw.testing import small_snapshot
from tests.adapters.registry_world import NOW_S, REACTOR
from tests.etcd import EtcdServer, etcd_server
from tests.servers import free_port, turns, until

PREFIX = "/services/orders/"


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd_server() as server:
        yield server


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    server.delete_below("/services/")
    server.put(PREFIX + "1", "10.0.0.1:80")
    return server


class World:
    """A Discovery, and the instances that it set, as Backends would have them."""

    def __init__(self, state_dir: Path) -> None:
        self.instances: dict[str, tuple[Instance, ...]] = {}
        self.saved = SavedInstances(REACTOR, state_dir, lambda: NOW_S)
        self.discovery = Discovery(
            REACTOR, self.saved, lambda: NOW_S, self._set, lambda name: self.instances.get(name, ())
        )
        self.discovery.startService()

    def _set(self, name: str, instances: tuple[Instance, ...]) -> None:
        self.instances[name] = instances

    def configure(self, **backends: Section | None) -> None:
        """Backends by name, each with its discovery or none."""
        listed = tuple(Backend(name, discovery=section) for name, section in backends.items())
        listeners = (Listener("127.0.0.1", 8080),)
        config = attrs.evolve(small_snapshot().config, backends=listed, listeners=listeners, admin=AdminSection())
        self.discovery.configure(config)

    def hosts(self, name: str = "orders") -> list[str]:
        return [instance.host for instance in self.instances.get(name, ())]

    async def until_hosts(self, *hosts: str, name: str = "orders") -> None:
        await until(lambda: self.hosts(name) == list(hosts), REACTOR, 10)

    async def until_saved(self) -> None:
        await until(lambda: not self.saved._writing, REACTOR)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.discovery.stopService()


def at(*urls: str, **more: Any) -> Section:
    return Section("etcd", "orders", endpoints=urls, **more)


def test_every_type_of_the_configuration_has_its_registry() -> None:
    (kind,) = [each.kind for each in DISCOVERY.fields if isinstance(each, Field) and each.key == "type"]
    assert set(getattr(kind, "words")) == set(TYPES)


@pytest_twisted.ensureDeferred
async def test_what_is_discovered_is_set_and_saved(world: World, etcd: EtcdServer, tmp_path: Path) -> None:
    world.configure(orders=at(etcd.url), static=None)
    await world.until_hosts("10.0.0.1")
    await world.until_saved()
    assert (tmp_path / "discovery" / "orders.json").exists() and "static" not in world.instances
    said = world.discovery.of("orders")
    assert said == {
        "registry": f"etcd {etcd.url} {PREFIX}",
        "up": True,
        "last_error": None,
        "last_success": NOW_S,
        "list": "live",
        "saved_at": None,
        "instances": 1,
        "skipped": {},
        "empty_answer_for_seconds": None,
    }
    assert world.discovery.of("static") is None and world.discovery.troubles() == {} and world.discovery.all_up() == 1


@pytest_twisted.ensureDeferred
async def test_a_start_without_the_registry_serves_with_the_saved_list(
    world: World, etcd: EtcdServer, tmp_path: Path
) -> None:
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")
    await world.until_saved()
    again = World(tmp_path)
    again.configure(orders=at(f"http://127.0.0.1:{free_port()}"))
    assert again.hosts() == ["10.0.0.1"], "at once"
    await until(lambda: "refused" in str(again.discovery.troubles()), REACTOR)
    said: Any = again.discovery.of("orders")
    assert (said["up"], said["list"], said["saved_at"], said["instances"]) == (False, "saved", NOW_S, 1)
    assert "its last 1 instances serve" in (again.discovery.troubles() or {})["orders"]
    assert again.discovery.all_up() == 0.0
    again.discovery.stopService()


@pytest_twisted.ensureDeferred
async def test_a_list_that_is_that_of_the_configuration_before_is_saved_too(
    world: World, etcd: EtcdServer, tmp_path: Path
) -> None:
    """It is no change, but after a restart it is all there is."""
    world.instances["orders"] = (Instance("10.0.0.1", 80),)
    world.configure(orders=at(etcd.url))
    await until(lambda: (tmp_path / "discovery" / "orders.json").exists(), REACTOR, 10)


@pytest_twisted.ensureDeferred
async def test_a_start_without_anything_says_what_is_missing(world: World) -> None:
    world.configure(orders=at(f"http://127.0.0.1:{free_port()}"))
    assert "not heard yet; no instance is known" in (world.discovery.troubles() or {})["orders"]
    await until(lambda: "down: " in str(world.discovery.troubles()), REACTOR)
    assert world.hosts() == [] and "no instance is known" in (world.discovery.troubles() or {})["orders"]


@pytest_twisted.ensureDeferred
async def test_a_registry_that_is_up_and_names_nobody_is_a_trouble_too(world: World, etcd: EtcdServer) -> None:
    world.configure(orders=at(etcd.url, prefix="/nobody/"))
    await until(lambda: world.discovery.all_up() == 1, REACTOR, 10)
    assert world.discovery.troubles() == {"orders": f"etcd {etcd.url} /nobody/ names no instance"}


@pytest_twisted.ensureDeferred
async def test_a_reload_leaves_alone_what_it_does_not_change(world: World, etcd: EtcdServer) -> None:
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")
    (registry,) = list(world.discovery)
    world.configure(orders=at(etcd.url), other=None)
    assert list(world.discovery) == [registry] and registry.running


@pytest_twisted.ensureDeferred
async def test_a_changed_discovery_is_asked_anew_while_its_list_serves(world: World, etcd: EtcdServer) -> None:
    etcd.put("/other/1", "10.0.0.9:80")
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")
    world.configure(orders=at(f"http://127.0.0.1:{free_port()}"))
    await until(lambda: world.discovery.all_up() == 0, REACTOR)
    assert world.hosts() == ["10.0.0.1"]
    world.configure(orders=at(etcd.url, prefix="/other/"))
    await world.until_hosts("10.0.0.9")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"networks": (ip_network("10.0.0.0/8"),)}, ["10.0.0.1"]),
        ({"networks": (ip_network("192.168.0.0/16"),)}, []),
        ({"allow_loopback": False}, ["10.0.0.1", "host.test"]),
        ({"allow_names": False}, ["10.0.0.1", "127.0.0.1"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_a_registry_may_not_name_any_more_goes_with_the_reload(
    world: World, etcd: EtcdServer, change: dict[str, Any], left: list[str]
) -> None:
    """Whether or not the registry answers then; what was saved of it does not come back either."""
    etcd.put(PREFIX + "2", "127.0.0.1:80")
    etcd.put(PREFIX + "3", "host.test:80")
    section = at(etcd.url, allow_names=True)
    world.configure(orders=section)
    await world.until_hosts("10.0.0.1", "127.0.0.1", "host.test")
    await world.until_saved()
    moved = f"http://127.0.0.1:{free_port()}"
    world.configure(orders=attrs.evolve(section, endpoints=(moved,)))
    assert world.hosts() == ["10.0.0.1", "127.0.0.1", "host.test"], "it may move"
    world.configure(orders=attrs.evolve(section, endpoints=(moved,), **change))
    assert world.hosts() == left
    said: Any = world.discovery.of("orders")
    assert (said["list"], said["instances"]) == ("kept" if left else "none", len(left))


@pytest_twisted.ensureDeferred
async def test_what_the_configuration_listed_itself_is_not_judged_as_if_a_registry_had_named_it(world: World) -> None:
    world.instances["orders"] = (Instance("127.0.0.1", 80),)
    world.configure(orders=at(f"http://127.0.0.1:{free_port()}"))
    world.configure(orders=at(f"http://127.0.0.1:{free_port()}", allow_loopback=False))
    assert world.hosts() == ["127.0.0.1"]


@pytest_twisted.ensureDeferred
async def test_instances_that_are_listed_after_discovery_are_the_configurations_own(
    world: World, etcd: EtcdServer
) -> None:
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")
    world.configure(orders=None)
    world.instances["orders"] = (Instance("127.0.0.1", 80),)
    world.configure(orders=at(f"http://127.0.0.1:{free_port()}", allow_loopback=False))
    assert world.hosts() == ["127.0.0.1"]


@pytest_twisted.ensureDeferred
async def test_a_backend_without_discovery_any_more_is_not_asked_for(world: World, etcd: EtcdServer) -> None:
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")
    world.configure(orders=None)
    assert list(world.discovery) == [] and world.discovery.troubles() is None and world.discovery.all_up() is None
    assert world.discovery.of("orders") is None and list(world.discovery.rows(lambda each: 1.0)) == []


@pytest_twisted.ensureDeferred
async def test_instances_that_were_listed_before_serve_until_there_is_a_list(world: World, etcd: EtcdServer) -> None:
    """Also before a saved one, which may be from long ago."""
    world.saved.save(Wanted("orders", at("http://127.0.0.1:1")), (Entry("10.6.6.6", 80),))
    await world.until_saved()
    world.instances["orders"] = (Instance("10.7.7.7", 80),)
    world.configure(orders=at(f"http://127.0.0.1:{free_port()}"))
    await until(lambda: world.discovery.all_up() == 0, REACTOR)
    assert world.hosts() == ["10.7.7.7"]
    said: Any = world.discovery.of("orders")
    assert (said["list"], said["instances"]) == ("kept", 1)
    assert "its last 1 instances serve" in (world.discovery.troubles() or {})["orders"]
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")


@pytest_twisted.ensureDeferred
async def test_instances_that_were_listed_before_go_when_the_registry_keeps_saying_that_there_are_none(
    world: World, etcd: EtcdServer
) -> None:
    world.instances["orders"] = (Instance("10.7.7.7", 80),)
    world.configure(orders=at(etcd.url, prefix="/nobody/", empty_after_s=0.5))
    await until(lambda: world.discovery.all_up() == 1, REACTOR, 10)
    assert world.hosts() == ["10.7.7.7"]
    await turns(REACTOR, 0.6)
    etcd.put("/nobody/x", "")
    etcd.delete("/nobody/x")
    await world.until_hosts()


@pytest_twisted.ensureDeferred
async def test_the_gateways_own_ports_are_nobodys_instances(world: World, etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "admin", "127.0.0.1:9601")
    etcd.put(PREFIX + "self", "127.0.0.1:8080")
    world.configure(orders=at(etcd.url))
    await world.until_hosts("10.0.0.1")
    assert list(world.discovery.rows(lambda each: float(sum(each.skipped.values())))) == [(("orders", "etcd"), 2.0)]
