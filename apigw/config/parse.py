"""Text -> records -> one draft of the whole configuration; what the draft means together is validate.py's.

Nothing raises here: problems are noted and reading goes on, so that one look shows every defect.
"""

from pathlib import Path
from typing import Any, Iterable, TypeVar

import attrs
from attrs import frozen

from apigw.config.declarations import CIRCUIT_BREAKER
from apigw.config.documents import MAIN_FILE, PART_FILE, SINGLE, MainFile, PartFile
from apigw.config.fields import Field, Record
from apigw.config.kinds import Reading, Refused, Reported, Site
from apigw.config.model import Backend, Config, RateLimits, Route, Tier
from apigw.config.nodes import Mapping, read_tree
from apigw.config.problems import Problems, shown

R = TypeVar("R")
Sites = dict[int, tuple[object, Site]]
UNAUTHENTICATED = "unauthenticated"  # the tier of unmatched paths where nothing else is said


@frozen
class Part:
    """What one text declares. `main` is set for the main file only."""

    file: str
    backends: tuple[Backend, ...] = ()
    routes: tuple[Route, ...] = ()
    tiers: tuple[Tier, ...] = ()
    main: MainFile | None = None
    sites: Sites = attrs.field(factory=dict, eq=False)
    complete: bool = True  # False: the text could not be read as a whole, names it declares are not known


@frozen
class Draft:
    """A whole configuration with the place of each record; fit to serve only when `problems` is empty."""

    config: Config
    sites: Sites = attrs.field(repr=False, eq=False)
    problems: Problems
    complete: bool
    main_file: str

    def site(self, record: object) -> Site:
        """Where `record` was read; the main file's first line for a section that was left out."""
        found = self.sites.get(id(record))
        return found[1] if found else Site(self.main_file, 1)

    def sound(self, record: object, *keys: str) -> bool:
        """Whether none of these keys of the record was refused: only then may a check reason about them."""
        return self.site(record).bad.isdisjoint(keys)

    def refuse(self, record: object, key: str, message: str, suggestion: str | None = None) -> None:
        """Notes a problem at the line of the record's `key`, or of the record where the key was left out."""
        site = self.site(record)
        self.problems.add(site.file, site.lines.get(key, site.line), message, suggestion)

    def place(self, record: object, key: str = "") -> str:
        """FILE:LINE, for messages that name a second place."""
        site = self.site(record)
        return f"{site.file}:{site.lines.get(key, site.line)}"


def read_main(text: str, file: str, folder: Path, problems: Problems) -> Part:
    """The main file. `file` is its name in messages, relative paths in it start at `folder`."""
    reading = Reading(file, folder, problems)
    main = _read(MAIN_FILE, text, reading)
    if main is None:
        return Part(file, main=MainFile(None), complete=False)
    owned = _owned(main.backends, main.owner, reading), _owned(main.routes, main.owner, reading)
    return Part(file, *owned, main.rate_limits.tiers, main, reading.sites)


def read_part(text: str, file: str, folder: Path, problems: Problems) -> Part:
    """An included file: backends, routes, tiers, and an owner for those that name none."""
    reading = Reading(file, folder, problems)
    part: PartFile | None = _read(PART_FILE, text, reading)
    if part is None:
        return Part(file, complete=False)
    owned = _owned(part.backends, part.owner, reading), _owned(part.routes, part.owner, reading)
    return Part(file, *owned, part.tiers, None, reading.sites)


def read_single(folder: str, name: str, text: str, source: str, problems: Problems) -> Part:
    """One value of a configuration store. `folder` is routes, policies or backends, `name` the key's last part,
    which the record inside must repeat; `source` stands for the file in messages ("etcd:/gateway/routes/orders").

    JSON or YAML. Raises KeyError for another folder.
    """
    reading = Reading(source, Path("/"), problems)
    record = _read(SINGLE[folder], text, reading)
    if record is None:
        return Part(source, complete=False)
    identity = SINGLE[folder].identity
    own = getattr(record, identity)
    if own is not None and own != name:
        line = reading.sites[id(record)][1].lines[identity]
        problems.add(source, line, f"{identity} is {shown(own)}, but the key ends in {shown(name)}")
    if isinstance(record, Backend):
        return Part(source, backends=(record,), sites=reading.sites)
    if isinstance(record, Route):
        return Part(source, routes=(record,), sites=reading.sites)
    return Part(source, tiers=(record,), sites=reading.sites)


def assemble(main: Part, parts: Iterable[Part], hostname: str, problems: Problems) -> Draft:
    """All parts as one draft, with the defaults that depend on other parts made concrete."""
    every = (main, *parts)
    sites: Sites = {}
    for part in every:
        sites.update(part.sites)
    file = main.main or MainFile(None)
    rate_limits = _settled_limits(file.rate_limits, every, sites)
    gateway = file.gateway
    if not gateway.instance_name:
        gateway = _moved(gateway, attrs.evolve(gateway, instance_name=hostname), sites)
    backends = tuple(_placed(_inheriting(one, file, sites), file, sites) for part in every for one in part.backends)
    config = Config(
        gateway=gateway,
        listeners=file.listeners or (),
        admin=file.admin,
        limits=file.limits,
        jwt=file.jwt,
        api_keys=file.api_keys,
        redis=file.redis,
        rate_limits=rate_limits,
        load_shedding=file.load_shedding,
        circuit_breaker=file.circuit_breaker,
        access_log=file.access_log,
        tracing=file.tracing,
        config=file.config,
        backends=backends,
        routes=tuple(route for part in every for route in part.routes),
    )
    if id(file) in sites:
        sites[id(config)] = (config, sites[id(file)][1])
    complete = all(part.complete for part in every)
    return Draft(config, sites, problems, complete, main.file)


def _read(table: Record[Any], text: str, reading: Reading) -> Any:
    node = read_tree(text, reading.file, reading.problems)
    if node is None:
        return None
    if not isinstance(node, Mapping):
        reading.problems.add(reading.file, node.line, "must be a mapping of keys to values")
        return None
    try:
        return table.read(node, "", reading)
    except Refused as refused:
        reading.problems.add(reading.file, node.line, refused.message, refused.suggestion)
    except Reported:
        pass
    return None


def _moved(old: object, new: R, sites: Sites) -> R:
    """`new` stands where `old` stood."""
    if id(old) in sites:
        sites[id(new)] = (new, sites[id(old)][1])
    return new


def _owned(records: tuple[R, ...], owner: str | None, reading: Reading) -> tuple[R, ...]:
    if owner is None:
        return records
    return tuple(
        record
        if getattr(record, "owner") is not None
        else _moved(record, attrs.evolve(record, owner=owner), reading.sites)  # type: ignore[misc]
        for record in records
    )


def _settled_limits(given: RateLimits, every: tuple[Part, ...], sites: Sites) -> RateLimits:
    """Tiers of all files; unmatched paths count against the client's IP where the usual tier does so."""
    tiers = tuple(tier for part in every for tier in part.tiers)
    unmatched = given.unmatched_tier
    if unmatched is None and any(tier.tier == UNAUTHENTICATED and tier.per == "client_ip" for tier in tiers):
        unmatched = UNAUTHENTICATED
    return _moved(given, attrs.evolve(given, tiers=tiers, unmatched_tier=unmatched), sites)


def _inheriting(backend: Backend, file: MainFile, sites: Sites) -> Backend:
    """A backend's own `circuit_breaker` keeps the main section's values where it says nothing."""
    own = backend.circuit_breaker
    if own is None:
        return backend
    given = sites[id(own)][1].lines
    attributes = [
        each.attribute or each.key for each in CIRCUIT_BREAKER.fields if isinstance(each, Field) and each.key in given
    ]
    changed = {name: getattr(own, name) for name in attributes}
    breaker = _moved(own, attrs.evolve(file.circuit_breaker, **changed), sites)
    return _moved(backend, attrs.evolve(backend, circuit_breaker=breaker), sites)


def _placed(backend: Backend, file: MainFile, sites: Sites) -> Backend:
    """A discovery that does not say where its registry is means the one of `config:`."""
    own = backend.discovery
    if own is None:
        return backend
    if own.type == "consul" and own.url is None and "url" not in sites[id(own)][1].bad:
        found = attrs.evolve(own, url=file.config.consul_url)
    elif own.type == "etcd" and not own.endpoints and "endpoints" not in sites[id(own)][1].bad:
        found = attrs.evolve(own, endpoints=file.config.etcd_endpoints)
    else:
        return backend
    return _moved(backend, attrs.evolve(backend, discovery=_moved(own, found, sites)), sites)
