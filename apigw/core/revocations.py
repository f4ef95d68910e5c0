"""The revocation list of JWTs: by jti, and by user with "issued before" (contract section 7). Pure, time is given.

Note [Revocations]
  A revoked token is refused after its signature and times were found good, so the list says nothing to a guesser.
  An entry is kept until the last token it can meet has expired; what has expired needs no list. Entries only
  ever add up: loading the list again (start, a reconnect) merges, since a gap must not let anything back in.
  Times are epoch seconds.
"""

from typing import Iterable, NamedTuple


class RevokedToken(NamedTuple):
    """No token with this jti passes; `until_s`: when it has expired anyway."""

    jti: str
    until_s: float


class RevokedUser(NamedTuple):
    """No token of this user issued at or before `issued_until_s` passes; one without iat neither."""

    user_id: str
    issued_until_s: float
    until_s: float


Revocation = RevokedToken | RevokedUser


class Revocations:
    """What is revoked, as far as this worker knows. `any` is the price of a request that meets an empty list."""

    def __init__(self) -> None:
        self.any = False
        self._tokens: dict[str, float] = {}
        self._users: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._tokens) + len(self._users)

    def add(self, revocations: Iterable[Revocation]) -> None:
        """Merge: of two entries for one jti or user the stricter counts."""
        for revocation in revocations:
            if isinstance(revocation, RevokedToken):
                self._tokens[revocation.jti] = max(revocation.until_s, self._tokens.get(revocation.jti, 0.0))
            else:
                before = self._users.get(revocation.user_id, (0.0, 0.0))
                self._users[revocation.user_id] = (
                    max(revocation.issued_until_s, before[0]),
                    max(revocation.until_s, before[1]),
                )
        self.any = bool(self._tokens or self._users)

    def refuses(self, jti: str | None, user_id: str | None, issued_s: float | None) -> bool:
        """Whether a token with this jti, user and iat is revoked. `issued_s` None: a token that does not say."""
        if jti is not None and jti in self._tokens:
            return True
        if user_id is None:
            return False
        entry = self._users.get(user_id)
        return entry is not None and (issued_s is None or issued_s <= entry[0])

    def prune(self, now_s: float) -> int:
        """Drop what every token it meets has outlived; how many were dropped."""
        before = len(self)
        self._tokens = {jti: until_s for jti, until_s in self._tokens.items() if until_s > now_s}
        self._users = {user: entry for user, entry in self._users.items() if entry[1] > now_s}
        self.any = bool(self._tokens or self._users)
        return before - len(self)


NOTHING_REVOKED = Revocations()  # where there is no list; nothing is ever added to it
