"""RS256 tokens. (Skeleton; see the authentication work.)"""


class Keyring:
    """The parsed verification keys by kid."""
