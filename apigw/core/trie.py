"""The route table: a prefix trie over path segments (design part 7, "Router").

    /api/v2/users/*   matches /api/v2/users and everything below it
    /api/v2/users/me  matches itself alone, and comes before any wildcard

Exact before wildcard, longer prefix before shorter. The walk is as long as the path is deep and knows
nothing of the number of routes. A "*" in a request's path is a character like any other.
"""

from typing import Generic, TypeVar

Leaf = TypeVar("Leaf")


class _Node(Generic[Leaf]):
    __slots__ = ("children", "exact", "wildcard")

    def __init__(self) -> None:
        self.children: dict[str, _Node[Leaf]] = {}
        self.exact: Leaf | None = None
        self.wildcard: Leaf | None = None


class Trie(Generic[Leaf]):
    """Built once, then only read. Patterns are canonical paths, or canonical prefixes followed by "/*"."""

    def __init__(self) -> None:
        self._root: _Node[Leaf] = _Node()

    def add(self, pattern: str, leaf: Leaf) -> None:
        """Raises ValueError when the pattern stands already."""
        wildcard = pattern.endswith("/*")
        path = pattern[:-2] if wildcard else pattern
        node = self._root
        for segment in path.split("/")[1:]:
            node = node.children.setdefault(segment, _Node())
        if (node.wildcard if wildcard else node.exact) is not None:
            raise ValueError(f"duplicate pattern {pattern}")
        if wildcard:
            node.wildcard = leaf
        else:
            node.exact = leaf

    def match(self, path: str) -> Leaf | None:
        """The most specific leaf for a canonical path (it begins with "/")."""
        node = self._root
        best = node.wildcard
        for segment in path.split("/")[1:]:
            child = node.children.get(segment)
            if child is None:
                return best
            node = child
            if node.wildcard is not None:
                best = node.wildcard
        return node.exact if node.exact is not None else best
