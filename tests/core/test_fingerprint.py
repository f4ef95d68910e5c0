"""What tells programs apart, and what does not."""

from time import perf_counter

from apigw.core.fingerprint import fingerprint
from apigw.exchange import ClientRequest

BROWSER = {
    "Host": "api.example.com",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/120.0",
    "Accept": "text/html,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br",
}


def request(headers: dict[str, str]) -> ClientRequest:
    lines = [(name.encode(), name.lower().encode(), value.encode()) for name, value in headers.items()]
    return ClientRequest("GET", b"/", lines, {lower: value for _, lower, value in lines})


SEEN = fingerprint(request(BROWSER))


def test_it_is_the_program_and_not_its_user_its_address_or_what_it_asks() -> None:
    """Credentials, cookies and other values may change; 32 hex digits, safe in a key."""
    signed = {**BROWSER, "Authorization": "Bearer a", "Cookie": "a=1"}
    other = {**BROWSER, "Authorization": "Bearer b", "Cookie": "b=2"}
    assert fingerprint(request(signed)) == fingerprint(request(other)) != SEEN
    assert len(SEEN) == 32 and int(SEEN, 16)


def test_each_of_its_parts_tells_programs_apart() -> None:
    """User agent, what it accepts, its header names and their order, but not their case."""
    for name in ("User-Agent", "Accept", "Accept-Language", "Accept-Encoding"):
        assert fingerprint(request({**BROWSER, name: "other"})) != SEEN
        assert fingerprint(request({key: value for key, value in BROWSER.items() if key != name})) != SEEN
    assert fingerprint(request(dict(reversed(BROWSER.items())))) != SEEN
    assert fingerprint(request({**BROWSER, "X-More": ""})) != SEEN
    assert fingerprint(request({name.lower(): value for name, value in BROWSER.items()})) == SEEN


def test_the_network_is_part_of_it_when_it_is_asked_for() -> None:
    """A bot that rotates within a /24 or a /48 stays one; the same browser elsewhere is another."""
    near = {fingerprint(request(BROWSER), ip) for ip in ("203.0.113.1", "203.0.113.200")}
    near6 = {fingerprint(request(BROWSER), ip) for ip in ("2001:db8:1::1", "2001:db8:1:ffff::2")}
    assert len(near) == len(near6) == 1
    assert len(near | near6 | {SEEN, fingerprint(request(BROWSER), "203.0.114.1")}) == 4


def test_a_head_as_large_as_may_be_is_cheap() -> None:
    """Contract 13.11: one hundred headers and 8 KB cost microseconds; measured loosely."""
    large = request({**BROWSER, "User-Agent": "x" * 6000, **{f"X-{n}": "v" for n in range(95)}})
    began_s = perf_counter()
    for _ in range(100):
        fingerprint(large)
    assert perf_counter() - began_s < 0.1
