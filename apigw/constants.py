"""Every number of the house that is not configuration, with its unit and its reason."""

from typing import Final

MAX_HEADERS: Final = 100  # header lines of one request; Apache's and nginx's order of magnitude (http1 corpus: 100)
MAX_TARGET_BYTES: Final = 8192  # a target can never exceed the header limit's default (design part 13, "8 KB")
MAX_TOKEN_BYTES: Final = 8192  # a JWT longer than the header limit cannot arrive; checked before any decoding
MAX_SCOPES: Final = 256  # of one token; beyond it X-User-Scopes would be larger than backends take
MAX_SCOPES_BYTES: Final = 4096  # of X-User-Scopes: half of what nginx and Tomcat accept as a whole header
MAX_USER_ID_CHARS: Final = 256  # of X-User-ID; it is also part of a Redis key and of log entries
MAX_REVOCATIONS: Final = 200_000  # entries a worker holds, 40 MB; with more the issuer's keys should be changed instead
MAX_JWKS_BYTES: Final = 262_144  # a key document; 100 RSA-4096 keys with certificates fit
MAX_JWKS_KEYS: Final = 100  # importing a key costs 0.1 ms: all of them must not hold the loop for 50 ms
JWKS_TIMEOUT_S: Final = 5.0  # one fetch of the key document, body included; requests may wait for it
JWKS_COOL_DOWN_S: Final = 30.0  # contract section 7: an unknown kid triggers at most one refresh in it
MAX_CHUNK_EXTENSION_BYTES: Final = 256  # one chunk's extensions; nobody uses them, attackers do
MAX_BODY_OVERHEAD_RATIO: Final = 16  # chunk framing bytes allowed per body byte, beyond a free allowance
MAX_CHUNK_OVERHEAD_BYTES: Final = 16_384  # the free allowance of chunk framing in one body
MAX_TRAILER_BYTES: Final = 8192  # a trailer section, dropped after it was checked
READ_BYTES: Final = 65_536  # one recv; also the design's streaming buffer (part 11)
WRITE_HIGH_WATER_BYTES: Final = 65_536  # above it the producer is paused (part 11: "a small buffer (64 KB)")
WRITE_LOW_WATER_BYTES: Final = 16_384  # below it the producer goes on
MAX_PIPELINED_BYTES: Final = 65_536  # bytes kept of requests that follow the one in work; then reading pauses
MIN_PROGRESS_BYTES: Final = 512  # in one body timeout, both ways; a byte now and then is no progress (slow loris)
MAX_RESPONSE_HEADER_BYTES: Final = 65_536  # a backend's head above it is garbage: 502
LINGER_S: Final = 1.0  # after a refusal the peer may still send; RST at once could destroy the answer (RFC 9112 9.6)
TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0  # as the header timeout: a handshake is part of a request's headers
CLOCK_SKEW_S: Final = 30.0  # distributed clocks differ (design part 7)
TICK_S: Final = 0.005  # granularity of deadlines: a 50 ms timeout is kept within 10%
MAX_LOG_FIELD_CHARS: Final = 1024  # path, user agent, query: an entry stays below 8 KiB (contract 13.12)
MAX_LOG_ENTRY_BYTES: Final = 8192  # one line with its newline, after escaping (contract 13.12)
OVERLOADED_RETRIES_S: Final = (1, 2, 3)  # given in turn: the next second may be fine, but not for all at once
RETRY_AFTER_DEPENDENCY_S: Final = 5  # keys or limiter unavailable: pollers try again in seconds
BCRYPT_COST: Final = 12  # 0.3 s of a slow core a check: secrets have 256 bits, so it guards against no guess but a leak
