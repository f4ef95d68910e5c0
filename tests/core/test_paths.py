"""One spelling for every path: by a corpus, by properties, and in bounded time."""

import re
import time
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core.paths import AmbiguousPath, canonical, canonical_and_wire, split_absolute, valid_authority
from tests.corpus.paths import ABSOLUTE, AUTHORITIES, PATHS


@pytest.mark.parametrize(("target", "path", "query", "why"), PATHS)
def test_every_target_of_the_corpus_has_its_verdict(target: bytes, path: str | None, query: str, why: str) -> None:
    if path is None:
        with pytest.raises(AmbiguousPath) as refusal:
            canonical(target)
        assert (refusal.value.status, refusal.value.code) == (400, "bad_request")
        assert refusal.value.detail
    else:
        assert canonical(target) == (path, query)


def test_the_corpus_is_large_and_says_nothing_twice() -> None:
    targets = [target for target, *_ in PATHS]
    assert len(targets) == len(set(targets)) >= 120


PIECES = [
    b"/", b"/", b"//", b".", b"..", b"a", b"Zz9", b"%2e", b"%2E", b"%2f", b"%5c", b"%00", b"%41", b"%7e", b"%c3%a9",
    b"%C3", b"%A9", b"%25", b"%", b"%3b", b";", b"[", b"\"", b"^", b" ", b"#", b"\\", b"?", b"=", b"&", b"*", b"%e2%88",
    b"%f0%9f%98%80", b"%c0%ae", b"\x80", b"\x00", b"~", b"_", b"-", b"%2", b"%zz", b"x;y=1", b"..;",
]  # fmt: skip
targets = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: b"/" + b"".join(pieces)),
    st.binary(max_size=30).map(lambda rest: b"/" + rest),
    st.text(max_size=20).map(lambda text: ("/" + text).encode("utf-8", "surrogatepass")),
)


def made_canonical(target: bytes) -> str | None:
    try:
        return canonical(target)[0]
    except AmbiguousPath:
        return None


@settings(max_examples=1000)
@given(targets)
def test_a_canonical_path_is_its_own_canonical_path(target: bytes) -> None:
    path = made_canonical(target)
    if path is not None:
        assert made_canonical(path.encode("ascii")) == path


@settings(max_examples=1000)
@given(targets)
def test_a_canonical_path_has_no_second_reading(target: bytes) -> None:
    path = made_canonical(target)
    if path is None:
        return
    assert path.startswith("/") and path.isascii() and path.isprintable() and " " not in path
    assert "//" not in path and "\\" not in path and "?" not in path and "#" not in path
    assert not {".", ".."} & set(path.split("/"))
    assert re.search("%(?:2F|5C|0.|1.|7F)", path, re.IGNORECASE) is None
    for escape in re.findall("%..", path):
        assert re.fullmatch("%[0-9A-F]{2}", escape), "escapes have upper-case digits"
        assert re.fullmatch("[A-Za-z0-9._~-]", chr(int(escape[1:], 16))) is None, "unreserved is decoded"
    assert not any(segment.startswith((".;", "..;", ".%3B", "..%3B")) for segment in path.split("/"))
    unquote_to_bytes(path).decode("utf-8")


def reference(target: bytes) -> list[bytes] | None:
    """The decoded segments by the plain words of the Note: split, decode once, then walk."""
    raw = target.partition(b"?")[0]
    kept: list[bytes] = []
    for segment in raw.split(b"/")[1:]:
        decoded = unquote_to_bytes(segment)
        if decoded == b"..":
            if not kept:
                return None
            kept.pop()
        elif decoded not in (b"", b"."):
            kept.append(decoded)
    return kept


@settings(max_examples=1000)
@given(targets)
def test_it_decodes_to_the_segments_of_the_plain_reading(target: bytes) -> None:
    path = made_canonical(target)
    if path is not None:
        segments = [unquote_to_bytes(segment) for segment in path.split("/") if segment]
        assert segments == reference(target)


@settings(max_examples=500)
@given(targets)
def test_a_backend_gets_the_routed_path_but_for_the_case_of_hex_digits(target: bytes) -> None:
    """A prefix of the route that is cut from it therefore has the same length in both."""
    try:
        path, query, wire = canonical_and_wire(target)
    except AmbiguousPath:
        return
    assert (path, query) == canonical(target)
    assert re.sub("%..", lambda match: match.group().upper(), wire) == path
    assert made_canonical(wire.encode("ascii")) == path


def test_hex_digits_reach_the_backend_in_the_clients_case() -> None:
    assert canonical_and_wire(b"/%c3%A9/%3b%3B[") == ("/%C3%A9/%3B%3B%5B", "", "/%c3%A9/%3b%3B%5B")


@given(targets)
def test_the_query_is_passed_on_as_it_came(target: bytes) -> None:
    try:
        _, query = canonical(target)
    except AmbiguousPath:
        return
    assert query.encode("ascii") == target.partition(b"?")[2]


plain_segments = st.lists(st.from_regex(rb"[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*", fullmatch=True))


@given(plain_segments)
def test_a_plain_path_is_left_alone(segments: list[bytes]) -> None:
    target = b"/" + b"/".join(segments)
    assert canonical(target) == (target.decode("ascii"), "")


@pytest.mark.parametrize(("target", "authority", "origin"), ABSOLUTE)
def test_absolute_form_is_taken_apart(target: bytes, authority: bytes | None, origin: bytes | None) -> None:
    if origin is None:
        with pytest.raises(AmbiguousPath):
            split_absolute(target)
    else:
        assert split_absolute(target) == (authority, origin)


@pytest.mark.parametrize(("authority", "valid"), AUTHORITIES)
def test_an_authority_is_a_host_and_a_port_and_nothing_else(authority: bytes, valid: bool) -> None:
    assert valid_authority(authority) is valid


HOSTILE = [
    b"/" + b"a" * 8180,
    b"/a" * 4090,
    b"/" * 8180,
    b"/a/.." * 1636,
    b"/%41" * 2045,
    b"/" + b"%C3%A9" * 1363,
    b"/" + b"[" * 8180,
    b"/" + b"[a" * 4089 + b"\\",
    b"/" + b".a/" * 2726,
    b"/a" * 4089 + b"\\",
    b"/" + b"%2" * 4090,
    b"/?" + b"a" * 8180 + b"#",
    b"/" + b"%C3" * 2726,
    b"http://" + b"a-" * 4000,
    b"http://" + b"a." * 4000,
]


@pytest.mark.parametrize("target", HOSTILE, ids=range(len(HOSTILE)))
def test_no_target_of_8_kib_takes_long(target: bytes) -> None:
    """Measured 2 ms at the most; 5 ms is what the invariant allows. CPU time, the best of three."""

    def cost_s() -> float:
        started_s = time.process_time()
        try:
            canonical(split_absolute(target)[1])
        except AmbiguousPath:
            pass
        return time.process_time() - started_s

    assert min(cost_s() for _ in range(3)) < 0.005
