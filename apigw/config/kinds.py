"""What a value may be: each kind reads a node into a value of the model, and shows it as the file would have it.

A kind refuses with `Refused`, whose message completes "KEY ...": "must be a whole number of at least 1, not
'10'". Types are strict: "10" is no number, true is no number, 1 is no boolean.
"""

import math
import re
from pathlib import Path
from typing import Callable, Generic, Hashable, TypeVar
from typing import Mapping as Dictionary

from attrs import field, frozen

from apigw.config.nodes import Mapping, Node, Scalar, Sequence, described
from apigw.config.problems import Problems, listed, shown
from apigw.core.redaction import HIDDEN

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0080-\u009f\u2028\u2029\ud800-\udfff]")


class Refused(Exception):
    """One value is not acceptable. The message completes "KEY ..."."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


class Reported(Exception):
    """A value is not acceptable and the problems inside it are noted already."""


@frozen
class Site:
    """Where one record stands: for messages about it that only a look at the whole can give.

    `lines`: key -> line; `bad`: keys whose values were refused, so that nothing follows from them.
    """

    file: str
    line: int
    lines: Dictionary[str, int] = field(factory=dict)
    bad: frozenset[str] = frozenset()


@frozen
class Reading:
    """One file being read: its name in messages, the folder its relative paths start from, where problems go.

    `sites` maps the id of every record made to the record (which keeps the id taken) and its site.
    """

    file: str
    folder: Path
    problems: Problems
    sites: dict[int, tuple[object, Site]] = field(factory=dict)

    def refuse(self, line: int, name: str, refused: Refused) -> None:
        self.problems.add(self.file, line, f"{name} {refused.message}", refused.suggestion)


class Kind(Generic[T]):
    """How a value of type T is written. Kinds are constants: they keep nothing of what they read."""

    def read(self, node: Node, name: str, reading: Reading) -> T:
        """Raises Refused, or Reported. `name` is the key's full name, for messages about parts of the value."""
        raise NotImplementedError

    def show(self, value: T) -> object:
        """As JSON has it, in the file's units, without secrets."""
        return value


def text_of(node: Node, what: str = "text") -> str:
    """The text of a scalar. Raises Refused for any other node, for nothing, and for control characters."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        hint = ""
        if isinstance(node, Scalar) and node.value is not None:
            hint = "; put it in quotes if it is text"
        raise Refused(f"must be {what}, not {described(node)}{hint}")
    if not node.value:
        raise Refused(f"must be {what}, not empty")
    if _CONTROL.search(node.value):
        raise Refused("has a control character")
    return node.value


@frozen
class Text(Kind[str]):
    """Any text of at most `longest` characters without control characters."""

    longest: int = 1024

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node)
        if len(text) > self.longest:
            raise Refused(f"is longer than {self.longest} characters")
        return text


@frozen
class Secret(Text):
    """Text that is never shown: not in messages, not in /config."""

    def show(self, value: str) -> object:
        return HIDDEN


@frozen
class Name(Kind[str]):
    """What goes into logs, metrics and keys: 1..128 of `[A-Za-z0-9._-]`."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "a name")
        if not _NAME.fullmatch(text):
            raise Refused(f"must be 1 to 128 of A-Z a-z 0-9 . _ -, not {shown(text)}")
        return text


@frozen
class Boolean(Kind[bool]):
    def read(self, node: Node, name: str, reading: Reading) -> bool:
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        word = str(node.value).lower() if isinstance(node, Scalar) else ""
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(word)
        raise Refused(f"must be true or false, not {described(node)}", meant)


def _number(node: Node, types: tuple[type, ...]) -> float | int | None:
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, bool) or not isinstance(value, types) or not isinstance(value, (int, float)):
        return None
    return value


def _bounds(low: float, high: float, open_below: bool, unit: str) -> str:
    lower = f"above {low:g}" if open_below else f"{low:.15g}"
    unit = f" {unit}" if unit else ""
    return f"{lower} and at most {high:.15g}{unit}" if open_below else f"{lower} to {high:.15g}{unit}"


@frozen
class Whole(Kind[int]):
    """An integer from `low` to `high`, both included. `unit` is for messages: "bytes"."""

    low: int
    high: int
    unit: str = ""

    def read(self, node: Node, name: str, reading: Reading) -> int:
        value = _number(node, (int,))
        if value is None or not self.low <= value <= self.high:
            expected = _bounds(self.low, self.high, False, self.unit)
            raise Refused(f"must be a whole number, {expected}, not {described(node)}")
        return int(value)


@frozen
class Number(Kind[float]):
    """A finite number from `low` (excluded if `open_below`) to `high`."""

    low: float
    high: float
    open_below: bool = False
    unit: str = ""

    def read(self, node: Node, name: str, reading: Reading) -> float:
        value = _number(node, (int, float))
        low_enough = value is not None and math.isfinite(value) and value <= self.high
        if value is None or not low_enough or not (value > self.low if self.open_below else value >= self.low):
            expected = _bounds(self.low, self.high, self.open_below, self.unit)
            raise Refused(f"must be a number, {expected}, not {described(node)}")
        return float(value)

    def show(self, value: float) -> object:
        return int(value) if value == int(value) else value


@frozen
class Milliseconds(Kind[float]):
    """Whole milliseconds in the file, seconds in the model."""

    low: int
    high: int

    def read(self, node: Node, name: str, reading: Reading) -> float:
        return Whole(self.low, self.high, "ms").read(node, name, reading) / 1000

    def show(self, value: float) -> object:
        return round(value * 1000)


@frozen
class Choice(Kind[str]):
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, node: Node, name: str, reading: Reading) -> str:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, str) and value in self.words:
            return value
        suggestion = reading.problems.nearest(value, self.words) if isinstance(value, str) else None
        raise Refused(f"must be {listed(self.words)}, not {described(node)}", suggestion)


@frozen
class Many(Kind[tuple[T, ...]]):
    """A list; each item is checked, so that one look shows all bad ones. Equal items (by `same`) are refused.

    keep: the good items are returned although others were refused, as `Record.lenient` does.
    """

    of: Kind[T]
    at_least: int = 0
    at_most: int = 1000
    same: Callable[[T], Hashable] | None = None
    keep: bool = False

    def read(self, node: Node, name: str, reading: Reading) -> tuple[T, ...]:
        if not isinstance(node, Sequence):
            raise Refused(f"must be a list, not {described(node)}")
        if not self.at_least <= len(node.items) <= self.at_most:
            bound = f"at least {self.at_least}" if len(node.items) < self.at_least else f"at most {self.at_most}"
            raise Refused(f"must have {bound} item{'' if bound.endswith(' 1') else 's'}")
        values: dict[Hashable, T] = {}
        refused = False
        for index, item in enumerate(node.items):
            refused |= not self._take(item, f"{name}[{index}]", values, reading)
        if refused and not self.keep:
            raise Reported
        return tuple(values.values())

    def _take(self, item: Node, name: str, values: dict[Hashable, T], reading: Reading) -> bool:
        try:
            value = self.of.read(item, name, reading)
        except Refused as refused:
            reading.refuse(item.line, name, refused)
            return False
        except Reported:
            return False
        identity: Hashable = self.same(value) if self.same else value
        if identity in values:
            what = identity if isinstance(identity, (str, int, float)) else str(identity)
            reading.refuse(item.line, name, Refused(f"repeats {shown(what)}"))
            return False
        values[identity] = value
        return True

    def show(self, value: tuple[T, ...]) -> object:
        return [self.of.show(item) for item in value]


@frozen
class Numbers(Kind[dict[str, float]]):
    """A mapping of a few fixed names to numbers; names left out keep the values of `defaults`."""

    defaults: Dictionary[str, float]
    of: Number

    def read(self, node: Node, name: str, reading: Reading) -> dict[str, float]:
        if not isinstance(node, Mapping):
            raise Refused(f"must be a mapping of {listed(self.defaults)}, not {described(node)}")
        values, refused = dict(self.defaults), False
        for key, (line, child) in node.entries.items():
            try:
                if key not in self.defaults:
                    nearest = reading.problems.nearest(key, self.defaults)
                    raise Refused(f"is unknown; {name} has {listed(self.defaults)}", nearest)
                values[key] = self.of.read(child, f"{name}.{key}", reading)
            except Refused as problem:
                reading.refuse(line, f"{name}.{key}", problem)
                refused = True
        if refused:
            raise Reported
        return values

    def show(self, value: dict[str, float]) -> object:
        return {key: self.of.show(number) for key, number in value.items()}
