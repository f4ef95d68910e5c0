"""Stage 3: one spelling of the path (core/paths.py says which, and what is refused)."""

from apigw.core.paths import canonical_and_wire
from apigw.exchange import Exchange, Target


class CanonicalPath:
    """Raises AmbiguousPath, a 400."""

    name = "canonical_path"
    needs = frozenset(("request",))
    gives = "target"

    def enter(self, ex: Exchange) -> Target:
        return Target(*canonical_and_wire(ex.request.target))
