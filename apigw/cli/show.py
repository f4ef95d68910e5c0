"""What verbs print: tables for a person, JSON for a program. Nothing that came from a client steers a terminal."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NONE: Final = "-"
_PIPE_COLUMNS: Final = 10_000  # standard output is no terminal: one line a row, whatever its length

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def plain(value: object) -> str:
    """A value as one word of a row: what is not printable is escaped, nothing is `-`."""
    if value is None or value == "" or value == ():
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(plain(item) for item in value)
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def document(value: Any) -> None:
    """JSON on standard output. Control characters are escaped by it, and what is not ASCII with them."""
    print(json.dumps(value, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Rows under their columns; those of `right` are numbers."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in columns:
        shown.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(plain(value)) for value in row))
    console().print(shown)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """`name   value`, a line each."""
    lines = [(name, plain(value)) for name, value in pairs]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def console() -> Console:
    """Standard output, as wide as the terminal."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=_PIPE_COLUMNS, no_color=True)


def since(seconds: float | None) -> str | None:
    """How long ago: `42 s`, `5 min`, `3 h`, `12 d`."""
    if seconds is None:
        return None
    for unit, size_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{int(seconds // size_s)} {unit}"
    return f"{int(seconds)} s"


def moment(epoch_s: float | None) -> str | None:
    """An epoch second as `2027-06-01T08:00:00Z`; a number that is no date as it is: one bad row hides no other."""
    if epoch_s is None:
        return None
    try:
        return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # the last: what the platform's gmtime does not know
        return str(epoch_s)
