"""The revocation list of JWTs: by jti, and by user with "issued before" (contract section 7). Pure, time is given.

Note [Revocations]
  A revoked token is refused after its signature and times were found good, so the list says nothing to a guesser.
  An entry is kept until the last token it can meet has expired; what has expired needs no list. Entries only
  ever add up: loading the list again (start, a reconnect) merges, since a gap must not let anything back in.
  Times are epoch seconds.
"""

import sys
from collections.abc import Iterable
from math import ceil, floor
from typing import Final, NamedTuple

from apigw.constants import MAX_REVOCATIONS


class RevokedToken(NamedTuple):
    """No token with this jti passes; `until_s`: from when it is refused anyway, its exp and the clock skew."""

    jti: str
    until_s: float


class RevokedUser(NamedTuple):
    """No token of this user issued at or before `issued_until_s` passes; one without iat neither."""

    user_id: str
    issued_until_s: float
    until_s: float


Revocation = RevokedToken | RevokedUser
Kept = tuple[dict[str, float], dict[str, tuple[float, float]]]  # until_s by jti; (issued_until_s, until_s) by user

_MINUTE_S: Final = 60.0  # entries leave by whole minutes: those of a minute lie together


class Revocations:
    """What is revoked, as far as this worker knows. `any` is the price of a request that meets an empty list.

    most: how many entries there may be; what does not fit is not in force, and counted in `left_out`.
    pruned_s: what ended up to then is not here, and will not be taken; set by prune(), by the time that it is told.
    """

    def __init__(self, most: int = MAX_REVOCATIONS) -> None:
        self.any = False
        self.left_out = 0
        self.pruned_s = 0.0
        self._most = most
        self._tokens: dict[str, float] = {}
        self._users: dict[str, tuple[float, float]] = {}
        # Names by the minute at whose beginning they are over. Strings are nothing to the garbage collector.
        self._tokens_leaving: dict[int, list[str]] = {}
        self._users_leaving: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._tokens) + len(self._users)

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {"token": len(self._tokens), "user": len(self._users)}

    def kept(self) -> Kept:
        """All of it, copied."""
        return self._tokens.copy(), self._users.copy()

    def add(self, revocations: Iterable[Revocation]) -> bool:
        """Merge: of two entries for one jti or user the stricter counts. Whether any of it was news."""
        news = False
        for revocation in revocations:
            if revocation.until_s <= self.pruned_s:
                continue
            news |= self._add_token(revocation) if isinstance(revocation, RevokedToken) else self._add_user(revocation)
        self.any = bool(self._tokens or self._users)
        return news

    def _add_token(self, token: RevokedToken) -> bool:
        before_s = self._tokens.get(token.jti)
        if before_s is None and not self._has_room():
            return False
        if before_s is not None and token.until_s <= before_s:
            return False
        self._tokens[token.jti] = token.until_s
        self._tokens_leaving.setdefault(_minute(token.until_s), []).append(token.jti)
        return True

    def _add_user(self, user: RevokedUser) -> bool:
        before = self._users.get(user.user_id)
        if before is None:
            if not self._has_room():
                return False
            before = (0.0, 0.0)
        after = max(user.issued_until_s, before[0]), max(user.until_s, before[1])
        if after == before:
            return False
        self._users[user.user_id] = after
        if after[1] > before[1]:
            self._users_leaving.setdefault(_minute(after[1]), []).append(user.user_id)
        return True

    def _has_room(self) -> bool:
        if len(self) < self._most:
            return True
        self.left_out += 1
        return False

    def refuses(self, jti: str | None, user_id: str | None, issued_s: float | None) -> bool:
        """Whether a token with this jti, user and iat is revoked. `issued_s` None: a token that does not say."""
        if jti is not None and jti in self._tokens:
            return True
        if user_id is None:
            return False
        entry = self._users.get(user_id)
        return entry is not None and (issued_s is None or issued_s <= entry[0])

    def prune(self, now_s: float, at_most: int = sys.maxsize) -> bool:
        """Drop what every token it meets had outlived when this minute began, looking at so many entries.

        Whether it is through. If not, call it again in another turn of the loop, which it does not hold for long.
        """
        minute = floor(now_s / _MINUTE_S)
        for leaving, forget in ((self._tokens_leaving, self._forget_token), (self._users_leaving, self._forget_user)):
            for due in sorted(each for each in leaving if each <= minute):
                names = leaving[due]
                while names and at_most > 0:
                    at_most -= 1
                    forget(names.pop(), due)
                if names:
                    return False
                del leaving[due]
        self.any = bool(self._tokens or self._users)
        self.pruned_s = minute * _MINUTE_S  # also when a clock that was ahead was put back: what it cost may come again
        return True

    def _forget_token(self, jti: str, due: int) -> None:
        """Unless it was made to last longer since; then it stands among those of a later minute as well."""
        until_s = self._tokens.get(jti)
        if until_s is not None and _minute(until_s) <= due:
            del self._tokens[jti]

    def _forget_user(self, user_id: str, due: int) -> None:
        entry = self._users.get(user_id)
        if entry is not None and _minute(entry[1]) <= due:
            del self._users[user_id]


def _minute(until_s: float) -> int:
    """The minute at whose beginning it is over."""
    return ceil(until_s / _MINUTE_S)


NOTHING_REVOKED = Revocations()  # where there is no list; nothing is ever added to it
