"""What a token's scopes claim grants, and the one form in which it is passed on.

Note [Scopes]
  A scope is a scope-token of RFC 6749 3.3: visible ASCII without `"` and `\\`. The claim is a string of them,
  separated by spaces (RFC 8693 4.2), or a list with one in each item. What is neither grants nothing: an item
  with a space in it, an item that is no string, a claim that is a number or an object. Nothing is guessed, split
  at a comma or compared without regard to case.
"""

import re
from typing import Final, Sequence

from apigw.constants import MAX_SCOPES, MAX_SCOPES_BYTES

_TOKEN: Final = re.compile(r"[!#-\[\]-~]+")
_TOKENS: Final = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*")
_NONE: Final[tuple[frozenset[str], str]] = (frozenset(), "")


class TooManyScopes(ValueError):
    """More scopes than a header may carry: above MAX_SCOPES or MAX_SCOPES_BYTES."""


def granted(claim: object) -> tuple[frozenset[str], str]:
    """(the scopes, the same separated by spaces in the claim's order). See Note [Scopes]; raises TooManyScopes."""
    if not claim:
        return _NONE
    if type(claim) is str:
        if len(claim) > MAX_SCOPES_BYTES:
            raise TooManyScopes
        items = claim.split(" ")
    elif type(claim) is list:
        items = claim
    else:
        return _NONE
    if len(items) > MAX_SCOPES:
        raise TooManyScopes
    try:
        text = " ".join(items)
    except TypeError:
        return _sifted(items)
    if len(text) > MAX_SCOPES_BYTES:
        raise TooManyScopes
    if _TOKENS.fullmatch(text) is None or text.count(" ") != len(items) - 1:
        return _sifted(items)
    return frozenset(items), text


def _sifted(items: Sequence[object]) -> tuple[frozenset[str], str]:
    """The items that are scopes, among others that are not."""
    good = dict.fromkeys(item for item in items if isinstance(item, str) and _TOKEN.fullmatch(item))
    text = " ".join(good)
    if len(text) > MAX_SCOPES_BYTES:
        raise TooManyScopes
    return frozenset(good), text


def is_scope(text: str) -> bool:
    """Whether `text` can be a scope at all; for the validation of required_scopes."""
    return _TOKEN.fullmatch(text) is not None
