"""YAML text -> a tree that knows its lines; no value of the model yet.

Built from libyaml's events rather than by yaml.compose: five times as fast, and every bound is held before
memory is spent: depth, number of nodes, and what aliases would expand to (the "billion laughs").
Plain scalars are read by the core schema of YAML 1.2: `yes`, `on` and 1:30 are text, which a field of
another type then refuses, instead of silently being true and 90.
"""

import re
from typing import Any, Final, Iterator

import yaml

from apigw.config.problems import Problems, shown

MAX_DEPTH: Final = 24  # the model needs 7
MAX_NODES: Final = 600_000  # of one text; 5,000 routes with every key are 225,000
MAX_ALIASED_NODES: Final = 100_000  # nodes that all aliases of one text stand for
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STANDARD = "tag:yaml.org,2002:"

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,30})")  # 0777 is octal to some and decimal to others: text
_BASED_INT = re.compile(r"0x[0-9a-fA-F]{1,24}|0o[0-7]{1,32}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

Value = str | int | float | bool | None


class Scalar:
    """A value with the line it stands on, counted from 1."""

    __slots__ = ("line", "value")

    def __init__(self, line: int, value: Value) -> None:
        self.line = line
        self.value = value


class Sequence:
    __slots__ = ("line", "items")

    def __init__(self, line: int) -> None:
        self.line = line
        self.items: list[Node] = []


class Mapping:
    """`entries`: key -> (line of the key, its node); a key stands once."""

    __slots__ = ("line", "entries")

    def __init__(self, line: int) -> None:
        self.line = line
        self.entries: dict[str, tuple[int, Node]] = {}


Node = Scalar | Sequence | Mapping


class _Abandoned(Exception):
    """The text is not worth reading on; the problem is noted."""


def described(node: Node) -> str:
    """What a node is, for a message: "the number 10", "a list"."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    value = node.value
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"the text {shown(value)}" if isinstance(value, str) else f"the number {shown(value)}"


def read_tree(text: str, file: str, problems: Problems) -> Node | None:
    """The tree of the one document in `text`, an empty Mapping for an empty one; None when it cannot be read.

    Problems are noted, nothing is raised. `text` is bounded by the caller.
    """
    problems.enter(file)
    events: Iterator[Any] = iter(())
    try:
        events = yaml.parse(text, Loader=_LOADER)
        return _Builder(file, problems).build(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(file, mark.line + 1 if mark else 1, f"not valid YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        problems.add(file, line, f"not valid YAML: {error.reason}")
    except _Abandoned:
        pass
    except ValueError:  # libyaml's wrapper on an escape such as "\UFFFFFFFF", which is no character
        problems.add(file, 1, "not valid YAML: an escape that is no character")
    return None


def resolved(text: str) -> Value:
    """A plain scalar by YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _BASED_INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


class _Open:
    """A collection that is being read: its node, what it weighs so far, and a mapping's pending key."""

    __slots__ = ("node", "size", "anchor", "key", "key_line", "skip")

    def __init__(self, node: Sequence | Mapping, anchor: str | None) -> None:
        self.node = node
        self.size = 1
        self.anchor = anchor
        self.key: str | None = None
        self.key_line = 0
        self.skip = False  # the pending key is refused: its value is read and dropped


class _Builder:
    def __init__(self, file: str, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._stack: list[_Open] = []
        self._root: Node | None = None
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._aliased = 0
        self._documents = 0
        self._texts: dict[str, str] = {}  # equal texts are one object: routes repeat their keys and most values

    def build(self, events: Iterator[Any]) -> Node:
        for number, event in enumerate(events):
            line = event.start_mark.line + 1
            if number > MAX_NODES:
                self._abandon(line, f"more than {MAX_NODES} values")
            if isinstance(event, yaml.ScalarEvent):
                node = Scalar(line, self._value(event, line))
                self._anchor(event.anchor, node, 1)
                self._place(node, line, 1)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._begin(event, line)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                done = self._stack.pop()
                self._anchor(done.anchor, done.node, done.size)
                self._place(done.node, done.node.line, done.size)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event.anchor, line)
            elif isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._abandon(line, "a second document begins; a file holds one")
        if self._root is None or (isinstance(self._root, Scalar) and self._root.value is None):
            return Mapping(1)
        return self._root

    def _abandon(self, line: int, message: str) -> None:
        self._problems.add(self._file, line, message)
        raise _Abandoned

    def _begin(self, event: Any, line: int) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _STANDARD + ("map" if mapping else "seq")):
            self._problems.add(self._file, line, f"the tag {shown(event.tag)} is not supported")
        if len(self._stack) >= MAX_DEPTH:
            self._abandon(line, f"nested deeper than {MAX_DEPTH} levels")
        self._stack.append(_Open(Mapping(line) if mapping else Sequence(line), event.anchor))

    def _value(self, event: Any, line: int) -> Value:
        text: str = event.value
        text = self._texts.setdefault(text, text)
        if event.tag is None:
            return resolved(text) if event.implicit[0] else text
        if event.tag in ("!", _STANDARD + "str"):
            return text
        value = resolved(text)
        kind = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}[type(value)]
        if event.tag != _STANDARD + kind:
            self._problems.add(self._file, line, f"the tag {shown(event.tag)} is not supported here")
        return value

    def _anchor(self, anchor: str | None, node: Node, size: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (node, size)

    def _alias(self, anchor: str | None, line: int) -> None:
        if anchor is None or anchor not in self._anchors:
            self._problems.add(self._file, line, f"the alias {shown(anchor)} has no anchor before it")
            self._place(Scalar(line, None), line, 1)
            return
        node, size = self._anchors[anchor]
        self._aliased += size
        if self._aliased > MAX_ALIASED_NODES:
            self._abandon(line, f"aliases stand for more than {MAX_ALIASED_NODES} values")
        self._place(node, line, size)

    def _place(self, node: Node, line: int, size: int) -> None:
        """Puts a finished node where it belongs: the root, a list's end, a mapping's key or value."""
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        top.size += size
        if isinstance(top.node, Sequence):
            top.node.items.append(node)
        elif top.key is None and not top.skip:
            self._take_key(top, node, line)
        else:
            if top.key is not None:
                top.node.entries[top.key] = (top.key_line, node)
            top.key, top.skip = None, False

    def _take_key(self, top: _Open, node: Node, line: int) -> None:
        assert isinstance(top.node, Mapping)
        top.skip = True
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            self._problems.add(self._file, line, f"a key must be a name, not {described(node)}")
        elif node.value == "<<":
            self._problems.add(self._file, line, "merge keys ('<<') are not supported; write the fields out")
        elif node.value in top.node.entries:
            first = top.node.entries[node.value][0]
            message = f"the key {shown(node.value)} stands twice; first on line {first}"
            self._problems.add(self._file, line, message)
        else:
            top.key, top.key_line, top.skip = node.value, line, False
