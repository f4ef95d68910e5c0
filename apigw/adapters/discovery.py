"""The instances of all backends that ask a registry for them: one Registry each, and what is saved of their lists.

start    the saved list, if there is one -> in force at once; then what the registry says
reload   discovery unchanged: goes on; changed: asked anew while of the list in force serves what is still allowed;
         gone: not asked any more
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import frozen
from twisted.application.service import MultiService
from twisted.logger import Logger

from apigw.adapters.registry import RegistryPoller
from apigw.adapters.registry_consul import ConsulRegistry
from apigw.adapters.registry_dns import DNSRegistry
from apigw.adapters.registry_etcd import EtcdRegistry
from apigw.adapters.registry_kubernetes import KubernetesRegistry
from apigw.adapters.saved_instances import Saved, SavedInstances
from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Config, Instance
from apigw.core.discovery import REASONS, Entry, RawEntry, sift
from apigw.ports import WallClock

SetInstances = Callable[[str, tuple[Instance, ...]], object]  # upstream.backends.Backends.set_instances

TYPES: dict[str, Callable[..., RegistryPoller]] = {
    "dns": DNSRegistry,
    "consul": ConsulRegistry,
    "etcd": EtcdRegistry,
    "kubernetes": KubernetesRegistry,
}

log = Logger()


@frozen
class _Followed:
    """One backend's registry. `saved`: the list that it began with, if that came from state_dir."""

    wanted: Wanted
    registry: RegistryPoller
    saved: Saved | None


class Discovery(MultiService):
    """A service: its children are the registries of the configuration in force."""

    def __init__(
        self,
        reactor: Any,
        saved: SavedInstances,
        wall: WallClock,
        set_instances: SetInstances,
        instances: Callable[[str], tuple[Instance, ...]],
    ) -> None:
        """instances: those that a backend has, perhaps from before it had discovery."""
        super().__init__()
        self._reactor = reactor
        self._saved = saved
        self._wall = wall
        self._set_instances = set_instances
        self._instances = instances
        self._followed: dict[str, _Followed] = {}
        self._named: set[str] = set()  # backends whose instances in force a registry named, not the configuration

    def configure(self, config: Config) -> None:
        """After Backends.configure() with the same configuration."""
        own_ports = frozenset([config.admin.port, *(listener.port for listener in config.listeners)])
        wanted = {
            backend.name: Wanted(backend.name, backend.discovery, own_ports)
            for backend in config.backends
            if backend.discovery is not None
        }
        for name, followed in list(self._followed.items()):
            if wanted.get(name) != followed.wanted:
                followed.registry.disownServiceParent()
                del self._followed[name]
        self._named &= wanted.keys()
        for name, each in wanted.items():
            if name not in self._followed:
                self._follow(each)

    def _follow(self, wanted: Wanted) -> None:
        """Begin with the instances that serve, listed or of another registry; else with the list saved before."""
        name = wanted.backend
        known = tuple(sorted(Entry(each.host, each.port, each.weight) for each in self._instances(name)))
        if name in self._named:
            known = self._still_allowed(wanted, known)
        saved = None if known else self._saved.load(wanted)
        if saved is not None:
            known = saved.entries
            log.info("{backend}: {n} instances from the list saved before", backend=name, n=len(known))
            self._set(name, known)

        def found(entries: tuple[Entry, ...]) -> None:
            self._set(name, entries)
            self._saved.save(wanted, entries)

        registry = TYPES[wanted.discovery.type](self._reactor, wanted, self._wall, found, known)
        self._followed[name] = _Followed(wanted, registry, saved)
        registry.setServiceParent(self)

    def _still_allowed(self, wanted: Wanted, known: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Of what a registry named under the configuration before, what it may name under this one; the rest goes."""
        sifted = sift([RawEntry(each.host, each.port, each.weight) for each in known], wanted.boundary())
        if sifted.skipped:
            log.warn(
                "{backend}: instances in force are not allowed any more: {what}",
                backend=wanted.backend,
                what="; ".join(f"{count} {word}: {REASONS[word]}" for word, count in sifted.skipped.items()),
            )
            self._set(wanted.backend, sifted.entries)
        return sifted.entries

    def _set(self, name: str, entries: tuple[Entry, ...]) -> None:
        self._named.add(name)
        self._set_instances(name, _instances(entries))

    # -- what the operator sees

    def troubles(self) -> dict[str, str] | None:
        """Backend -> what is wrong with its registry; None when no backend has discovery."""
        if not self._followed:
            return None
        told = {name: _trouble(each.registry) for name, each in self._followed.items()}
        return {name: trouble for name, trouble in told.items() if trouble is not None}

    def all_up(self) -> float | None:
        """For registry_up: whether every registry answers well; None when no backend has discovery."""
        if not self._followed:
            return None
        return float(all(each.registry.up for each in self._followed.values()))

    def of(self, backend: str) -> dict[str, object] | None:
        """For /status; None for a backend that lists its instances."""
        followed = self._followed.get(backend)
        if followed is None:
            return None
        registry = followed.registry
        live = registry.last_success_epoch_s is not None
        before = "saved" if followed.saved is not None else "kept" if registry.entries else "none"
        return {
            "registry": registry.where,
            "up": registry.up,
            "last_error": registry.last_error,
            "last_success": registry.last_success_epoch_s,
            "list": "live" if live else before,
            "saved_at": followed.saved.saved_epoch_s if followed.saved is not None and not live else None,
            "instances": len(registry.entries),
            "skipped": dict(registry.skipped),
            "empty_answer_for_seconds": _empty_for_s(registry),
        }

    def rows(self, read: Callable[[RegistryPoller], float | None]) -> Iterator[tuple[tuple[str, str], float]]:
        """((backend, type), value) of each, for gauges."""
        for name, each in self._followed.items():
            value = read(each.registry)
            if value is not None:
                yield (name, each.wanted.discovery.type), value


def _instances(entries: Iterable[Entry]) -> tuple[Instance, ...]:
    return tuple(Instance(each.host, each.port, each.weight) for each in entries)


def _trouble(registry: RegistryPoller) -> str | None:
    if registry.up:
        return None if registry.entries else f"{registry.where} names no instance"
    known = f"its last {len(registry.entries)} instances serve" if registry.entries else "no instance is known"
    why = "not heard yet" if registry.up is None else f"down: {registry.last_error}"
    return f"{registry.where}: {why}; {known}"


def _empty_for_s(registry: RegistryPoller) -> float | None:
    since_s = registry.empty_since_s
    return None if since_s is None or not registry.entries else round(registry.clock.seconds() - since_s, 1)
