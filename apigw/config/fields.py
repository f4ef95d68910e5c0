"""A section of the file as a table: key, kind, attribute. One table reads, shows and documents a record."""

import re
from typing import Any, Callable, Generic, Iterator, TypeVar

from attrs import field, frozen

from apigw.config.kinds import Kind, Reading, Refused, Reported, Site
from apigw.config.nodes import Mapping, Node, Scalar, described
from apigw.config.problems import shown

R = TypeVar("R")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@frozen
class Field:
    """`key` of the file is `attribute` of the record. A key left out, or empty, has the record's default.

    value_of: how to show it when the record keeps it in more than one attribute.
    hidden: not a part of the record (an `owner` for a whole file).
    """

    key: str
    kind: Kind[Any]
    attribute: str = ""
    required: bool = False
    value_of: Callable[[Any], Any] | None = None
    hidden: bool = False

    def show(self, record: object) -> object:
        value = self.value_of(record) if self.value_of else getattr(record, self.attribute or self.key)
        return None if value is None else self.kind.show(value)


@frozen
class Group:
    """A mapping of the file whose fields belong to the record around it (`auth: {jwt: ...}`)."""

    key: str
    fields: tuple[Field, ...]

    def show(self, record: object) -> object:
        return {each.key: each.show(record) for each in self.fields}


@frozen
class Record(Kind[R], Generic[R]):
    """A mapping that becomes a record by `make(**attributes)`; every key is checked, also after a bad one.

    noun, identity: how messages name one of many: "route 'orders'".
    lenient: a record with bad fields is returned all the same (its site says which), so that the checks of the
    whole see its name; problems are noted either way. Bad required attributes are None then.
    elsewhere: keys that are right in another file or section, with a sentence saying so.
    """

    make: Callable[..., R]
    fields: tuple[Field | Group, ...]
    noun: str = ""
    identity: str = ""
    lenient: bool = False
    elsewhere: dict[str, str] = field(factory=dict)

    def read(self, node: Node, name: str, reading: Reading) -> R:
        if not isinstance(node, Mapping):
            raise Refused(f"must be a mapping, not {described(node)}")
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        bad: set[str] = set()
        _read_fields(self.fields, node, self._named(node, name), reading, _Filling(values, lines, bad), self.elsewhere)
        if bad and not self.lenient:
            raise Reported
        record = self.make(**values)
        reading.sites[id(record)] = (record, Site(reading.file, node.line, lines, frozenset(bad)))
        return record

    def _named(self, node: Mapping, name: str) -> str:
        """What the names of this record's keys begin with."""
        if not self.noun:
            return f"{name}." if name else ""
        own = node.entries.get(self.identity)
        known = own is not None and isinstance(own[1], Scalar) and isinstance(own[1].value, str)
        return f"{self.noun} {shown(own[1].value)}: " if own and known and isinstance(own[1], Scalar) else f"{name}."

    def show(self, value: R) -> object:
        return {each.key: each.show(value) for each in self.fields if isinstance(each, Group) or not each.hidden}

    def keys(self) -> Iterator[str]:
        """All keys of the file that this table knows, groups as "etcd.prefix"."""
        for each in self.fields:
            yield from (f"{each.key}.{one.key}" for one in each.fields) if isinstance(each, Group) else (each.key,)


@frozen
class _Filling:
    """What is known so far of a record that is being read."""

    values: dict[str, Any]
    lines: dict[str, int]
    bad: set[str]


def _read_fields(
    fields: tuple[Field | Group, ...],
    node: Mapping,
    prefix: str,
    reading: Reading,
    filling: _Filling,
    elsewhere: dict[str, str],
) -> None:
    known = {each.key: each for each in fields}
    for key, (line, child) in node.entries.items():
        entry = known.get(key)
        if entry is None:
            filling.bad.add(key)
            _refuse_unknown(key, line, prefix, reading, known, elsewhere)
        elif isinstance(entry, Group):
            _read_group(entry, child, line, prefix, reading, filling)
        elif entry.required or not (isinstance(child, Scalar) and child.value is None):
            _read_field(entry, child, line, prefix, reading, filling)
    for entry in fields:
        if isinstance(entry, Field) and entry.required and entry.key not in node.entries:
            _refuse_missing(entry, node, prefix, reading, filling)


def _read_field(entry: Field, child: Node, line: int, prefix: str, reading: Reading, filling: _Filling) -> None:
    filling.lines[entry.key] = line
    try:
        filling.values[entry.attribute or entry.key] = entry.kind.read(child, prefix + entry.key, reading)
        return
    except Refused as refused:
        reading.refuse(line, prefix + entry.key, refused)
    except Reported:
        pass
    filling.bad.add(entry.key)
    if entry.required:
        filling.values[entry.attribute or entry.key] = None


def _read_group(entry: Group, child: Node, line: int, prefix: str, reading: Reading, filling: _Filling) -> None:
    filling.lines[entry.key] = line
    if isinstance(child, Mapping):
        _read_fields(entry.fields, child, f"{prefix}{entry.key}.", reading, filling, {})
    elif not isinstance(child, Scalar) or child.value is not None:
        reading.refuse(line, prefix + entry.key, Refused(f"must be a mapping, not {described(child)}"))
        filling.bad.add(entry.key)
        filling.bad.update(each.key for each in entry.fields)


def _refuse_unknown(
    key: str, line: int, prefix: str, reading: Reading, known: dict[str, Any], elsewhere: dict[str, str]
) -> None:
    if key in elsewhere:
        reading.problems.add(reading.file, line, f"{prefix}{key} {elsewhere[key]}")
        return
    name = prefix + (key if _PLAIN_KEY.fullmatch(key) else shown(key))
    reading.problems.add(reading.file, line, f"{name} is not a known key", reading.problems.nearest(key, known))


def _refuse_missing(entry: Field, node: Mapping, prefix: str, reading: Reading, filling: _Filling) -> None:
    filling.bad.add(entry.key)
    filling.values[entry.attribute or entry.key] = None
    reading.problems.add(reading.file, node.line, f"{prefix}{entry.key} is missing")
