"""Request IDs and traces: what is valid is continued, what is not is replaced, nothing is refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core.trace import Randomness, identify, uuid4
from apigw.exchange import Identity

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
PARENT = b"00-" + TRACE + b"-" + SPAN + b"-01"
UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
LINES = (
    rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-(00|01)\r\n(?:tracestate: [\t -~]{1,512}\r\n)?"
    rb"(?:X-B3-TraceId: [0-9a-f]{32}\r\nX-B3-SpanId: [0-9a-f]{16}\r\nX-B3-ParentSpanId: [0-9a-f]{16}\r\n"
    rb"X-B3-Sampled: [01]\r\n)?"
)


def identity(**fields: bytes) -> Identity:
    made = identify({name.replace("_", "-").encode(): value for name, value in fields.items()}, Randomness())
    check(made)
    return made


def check(made: Identity) -> None:
    """What holds for every identity, whatever the client sent."""
    assert re.fullmatch("[A-Za-z0-9._:-]{1,128}", made.request_id)
    assert re.fullmatch("[0-9a-f]{32}", made.trace_id) and made.trace_id != "0" * 32
    assert re.fullmatch("[0-9a-f]{16}", made.span_id) and made.span_id != "0" * 16
    assert made.parent_span_id is None or re.fullmatch("[0-9a-f]{16}", made.parent_span_id)
    assert made.parent_span_id != made.span_id
    match = re.fullmatch(LINES, made.trace_headers)
    assert match is not None
    assert match.groups() == (made.trace_id.encode(), made.span_id.encode(), b"01" if made.sampled else b"00")


@pytest.mark.parametrize("given_id", [b"a", b"A-Z.a_z:09", b"x" * 128, b"4bf92f35-77b3-4da6-a3ce-929d0e0e4736"])
def test_a_valid_request_id_is_kept(given_id: bytes) -> None:
    assert identity(x_request_id=given_id).request_id == given_id.decode()


@pytest.mark.parametrize(
    "given_id",
    [b"", b"x" * 129, b"a b", b"a,b", b"a, b", b'"a"', b"a\x1b[0m", b"{}", b"\xc3\xa9", b"a/b", b"a\n", b"a;b", b"a=b"],
)
def test_an_invalid_request_id_is_replaced_by_a_uuid4(given_id: bytes) -> None:
    assert re.fullmatch(UUID4, identity(x_request_id=given_id).request_id)


def test_a_missing_request_id_is_made() -> None:
    assert re.fullmatch(UUID4, identity().request_id)


def test_a_valid_traceparent_is_continued_with_a_span_of_our_own() -> None:
    made = identity(traceparent=PARENT, tracestate=b"a=1,b=2")
    assert made.trace_id == TRACE.decode() and made.parent_span_id == SPAN.decode() and made.sampled
    assert b"tracestate: a=1,b=2\r\n" in made.trace_headers


@pytest.mark.parametrize(("flags", "sampled"), [(b"00", False), (b"01", True), (b"02", False), (b"ff", True)])
def test_the_sampled_flag_is_kept_and_no_other(flags: bytes, sampled: bool) -> None:
    assert identity(traceparent=PARENT[:-2] + flags).sampled is sampled


@pytest.mark.parametrize("later", [b"01" + PARENT[2:], b"fe" + PARENT[2:] + b"-what-ever"])
def test_a_later_version_is_read_as_far_as_it_is_known(later: bytes) -> None:
    made = identity(traceparent=later)
    assert made.trace_id == TRACE.decode() and made.trace_headers.startswith(b"traceparent: 00-")


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"ff" + PARENT[2:],
        PARENT + b"-x",
        PARENT + b"x",
        b"01" + PARENT[2:] + b"x",
        PARENT.upper(),
        b"00-" + b"0" * 32 + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE[:-1] + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + SPAN,
        PARENT + b", " + PARENT,
        PARENT.replace(b"4", b"g"),
        b" " + PARENT,
    ],
)
def test_an_invalid_traceparent_begins_a_new_trace_without_the_old_state(parent: bytes) -> None:
    made = identity(traceparent=parent, tracestate=b"a=1")
    assert made.trace_id != TRACE.decode() and made.parent_span_id is None and not made.sampled
    assert b"tracestate" not in made.trace_headers


@pytest.mark.parametrize("state", [b"", b"a" * 513, b"a\x00", b"\xc3\xa9"])
def test_a_tracestate_that_is_none_is_dropped_alone(state: bytes) -> None:
    made = identity(traceparent=PARENT, tracestate=state)
    assert made.trace_id == TRACE.decode() and b"tracestate" not in made.trace_headers


@pytest.mark.parametrize(
    ("fields", "sampled"),
    [
        ({b"b3": TRACE + b"-" + SPAN + b"-1"}, True),
        ({b"b3": TRACE + b"-" + SPAN + b"-d"}, True),
        ({b"b3": TRACE + b"-" + SPAN + b"-0"}, False),
        ({b"b3": TRACE + b"-" + SPAN}, False),
        ({b"b3": TRACE + b"-" + SPAN + b"-1-" + SPAN}, True),
        ({b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN, b"x-b3-sampled": b"1"}, True),
        ({b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN, b"x-b3-flags": b"1"}, True),
        ({b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN, b"x-b3-sampled": b"0"}, False),
        ({b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN}, False),
    ],
)
def test_b3_is_continued_in_both_languages(fields: dict[bytes, bytes], sampled: bool) -> None:
    made = identify(fields, Randomness())
    check(made)
    assert made.trace_id == TRACE.decode() and made.parent_span_id == SPAN.decode() and made.sampled is sampled
    assert b"X-B3-TraceId: " + TRACE in made.trace_headers
    assert b"X-B3-ParentSpanId: " + SPAN in made.trace_headers


def test_a_short_b3_trace_id_is_filled_up() -> None:
    assert identity(b3=TRACE[:16] + b"-" + SPAN).trace_id == "0" * 16 + TRACE[:16].decode()


@pytest.mark.parametrize(
    "fields",
    [
        {b"b3": b"0"},
        {b"b3": b"1"},
        {b"b3": TRACE},
        {b"b3": TRACE + b"-" + SPAN + b"-2"},
        {b"b3": b"0" * 32 + b"-" + SPAN},
        {b"b3": TRACE + b"-" + b"0" * 16},
        {b"b3": TRACE.upper() + b"-" + SPAN},
        {b"x-b3-traceid": TRACE},
        {b"x-b3-spanid": SPAN},
        {b"x-b3-traceid": TRACE[:20], b"x-b3-spanid": SPAN},
        {b"x-b3-traceid": b"0" * 16, b"x-b3-spanid": SPAN},
    ],
)
def test_invalid_b3_begins_a_new_trace(fields: dict[bytes, bytes]) -> None:
    made = identify(fields, Randomness())
    check(made)
    assert made.parent_span_id is None and b"X-B3" not in made.trace_headers


def test_traceparent_comes_before_b3() -> None:
    made = identity(traceparent=PARENT, b3=b"1" * 32 + b"-" + SPAN + b"-0")
    assert made.trace_id == TRACE.decode() and made.sampled


header_values = st.one_of(
    st.sampled_from([PARENT, TRACE, SPAN, b"0", b"1", TRACE + b"-" + SPAN + b"-1", b"a=1", b"id-1"]),
    st.binary(max_size=40).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"").strip()),
    st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,5}", fullmatch=True),
)
HEADER_NAMES = [
    b"x-request-id", b"traceparent", b"tracestate", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-sampled",
    b"x-b3-flags",
]  # fmt: skip


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from(HEADER_NAMES), header_values))
def test_whatever_comes_the_identity_is_valid(fields: dict[bytes, bytes]) -> None:
    check(identify(fields, Randomness()))


def test_ids_differ() -> None:
    randomness = Randomness()
    made = [uuid4(randomness.hex(32)) for _ in range(2000)]
    assert len(set(made)) == 2000
    assert all(re.fullmatch(UUID4, one) for one in made)


def test_random_digits_are_fetched_by_the_page_and_never_given_twice() -> None:
    pages: list[int] = []

    def source(size: int) -> bytes:
        pages.append(size)
        return bytes((len(pages),)) * size

    randomness = Randomness(source)
    given_out = "".join(randomness.hex(32) for _ in range(256))
    assert len(pages) == 1 and given_out == "01" * 4096
    assert randomness.hex(48) == "02" * 24
    assert randomness.hex(8192) == "03" * 4096  # what does not fit on the rest of a page is left there
