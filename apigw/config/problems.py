"""What is wrong with a configuration: every defect with its place, and the nearest right name."""

import difflib
from typing import Collection, Iterable

from attrs import frozen

from apigw.errors import ConfigurationError

# Comparing names is quadratic in bad input: 5,000 wrong names against 5,000 right ones would hold the loop
# for minutes. One report compares so many pairs (about 1 s), then goes on without suggestions.
_MAX_COMPARISONS = 20_000
MAX_PROBLEMS = 2_000  # that one report keeps and shows; the others are only counted
_MAX_SHOWN_CHARS = 60  # of a value that a message quotes
_SIMILARITY = 0.6  # difflib's own default; below it suggestions confuse


@frozen
class Problem:
    """One defect. `line` counts from 1; `suggestion` is what was probably meant, ready to be written."""

    file: str
    line: int
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        hint = "" if self.suggestion is None else f"; did you mean {shown(self.suggestion)}?"
        return f"{self.file}:{self.line}: {self.message}{hint}"


def shown(value: object) -> str:
    """A value as a message quotes it: short, on one line, control characters escaped."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 4] + "..." + text[-1]


def listed(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


class Problems:
    """Collects the problems of one configuration, of all its files."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._unshown = 0
        self._ranks: dict[str, int] = {}
        self._comparisons_left = _MAX_COMPARISONS

    def enter(self, file: str) -> None:
        """The files are reported in the order of this call."""
        self._ranks.setdefault(file, len(self._ranks))

    def add(self, file: str, line: int, message: str, suggestion: str | None = None) -> None:
        self.enter(file)
        if len(self.found) < MAX_PROBLEMS:
            self.found.append(Problem(file, line, message, suggestion))
        else:
            self._unshown += 1

    def nearest(self, word: str, names: Collection[str]) -> str | None:
        """The one of `names` that `word` was probably meant to be, if there is one."""
        if not names or len(word) > 128 or self._comparisons_left < len(names):
            return None
        self._comparisons_left -= len(names)
        by_fold = {name.casefold(): name for name in sorted(names)}
        close = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=_SIMILARITY)
        return by_fold[close[0]] if close else None

    def in_order(self) -> tuple[Problem, ...]:
        """By file as read, then by line; what was found twice stands once."""
        unique = dict.fromkeys(self.found)
        ordered = sorted(unique, key=lambda problem: (self._ranks[problem.file], problem.line))
        if self._unshown:
            last = ordered[-1]
            ordered.append(Problem(last.file, last.line, f"{self._unshown} more problems are not shown"))
        return tuple(ordered)

    def raise_if_any(self) -> None:
        """Raises ConfigurationError with all problems."""
        if self.found:
            raise ConfigurationError(self.in_order())
