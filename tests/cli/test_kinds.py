"""What may stand on the command line."""

import time

import click
import pytest

from apigw.cli.admin import Admin
from apigw.cli.kinds import AdminListener, Duration, KeyId, Moment, Network, Scope, duration_s, moment_s
from apigw.cli.show import moment


def refusal(kind: click.ParamType, value: str) -> str:
    with pytest.raises(click.BadParameter) as raised:
        kind.convert(value, None, None)
    return raised.value.message


@pytest.mark.parametrize("text, seconds", [("30s", 30), ("15m", 900), ("24h", 86_400), ("90d", 7_776_000), ("0s", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5h", "1w", "９d", "999999999d", "1d "])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    assert "is no duration such as 90d" in refusal(Duration(), text)


@pytest.mark.parametrize(
    "text, epoch_s",
    [
        ("2027-01-15", 1_799_971_200),
        ("2027-01-15T08:00:00Z", 1_800_000_000),
        ("2027-01-15T08:00:00", 1_800_000_000),
        ("2027-01-15T09:00:00+01:00", 1_800_000_000),
    ],
)
def test_moments_are_utc_unless_they_say_otherwise(text: str, epoch_s: float) -> None:
    assert moment_s(text) == Moment().convert(text, None, None) == epoch_s


def test_a_duration_as_a_moment_counts_from_now_in_its_direction() -> None:
    now_s = time.time()
    assert Moment().convert("2h", None, None) == pytest.approx(now_s + 7200, abs=5)
    assert Moment(past=True).convert("2h", None, None) == pytest.approx(now_s - 7200, abs=5)
    assert Moment(past=True).convert("now", None, None) == pytest.approx(now_s, abs=5)


@pytest.mark.parametrize("text", ["", "tomorrow", "2027-13-01", "2027-02-30", "now", "01.02.2027"])
def test_what_is_no_moment_is_refused_with_examples(text: str) -> None:
    assert "is no time such as 90d, 2027-06-01" in refusal(Moment(), text)


@pytest.mark.parametrize(
    "text",
    ["9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59.5Z", "1969-12-31", "1970-01-01T00:00:00+01:00", "0001-01-01"],
)
def test_a_moment_that_no_date_in_utc_shows_is_none(text: str) -> None:
    """Made with such an end, a key could not be shown any more."""
    assert moment_s(text) is None
    for kind in (Moment(), Moment(past=True)):
        assert refusal(kind, text).endswith(", from 1970 to 9999 in UTC")


@pytest.mark.parametrize("text", ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_the_first_and_the_last_moment_are_shown_as_they_were_said(text: str) -> None:
    assert moment(moment_s(text)) == text


def test_networks() -> None:
    convert = Network().convert
    assert [convert(text, None, None) for text in ("10.0.0.0/8", "192.0.2.1", "2001:db8::/32")] == [
        "10.0.0.0/8",
        "192.0.2.1/32",
        "2001:db8::/32",
    ]
    assert refusal(Network(), "10.1.0.0/8").endswith("has host bits set; did you mean '10.0.0.0/8'?")
    assert "no address and no network" in refusal(Network(), "office")


def test_a_network_is_written_as_clients_addresses_are_compared_with_it() -> None:
    convert = Network().convert
    assert [convert(text, None, None) for text in ("::ffff:203.0.113.7", "::ffff:0:0/96", "::ffff:10.0.0.0/104")] == [
        "203.0.113.7/32",
        "0.0.0.0/0",
        "10.0.0.0/8",
    ]
    assert refusal(Network(), "::ffff:10.0.0.1/104").endswith("did you mean '10.0.0.0/8'?")
    for text in ("fe80::1%eth0", "fe80::%eth0/64"):
        assert refusal(Network(), text) == f"'{text}' has a zone (%...), which is an interface of one machine"


def test_scopes() -> None:
    assert Scope().convert("orders:read", None, None) == "orders:read"
    assert "repeat the option for each" in refusal(Scope(), "orders:read orders:write")
    assert "is no scope" in refusal(Scope(), 'a"b')


def test_an_id_is_taken_and_a_whole_key_is_not_nor_repeated() -> None:
    secret = "s" * 43
    assert KeyId().convert("3f9aK2mPq8Rz1LwX", None, None) == "3f9aK2mPq8Rz1LwX"
    said = refusal(KeyId(), f"pk_live_3f9aK2mPq8Rz1LwX_{secret}")
    assert "give the id alone, 3f9aK2mPq8Rz1LwX" in said and secret not in said
    for text in ("", "a-b", "pk_live_", "x" * 33):
        assert "no id of an API key" in refusal(KeyId(), text)


@pytest.mark.parametrize(
    "text, admin",
    [
        ("http://10.0.0.7:9601", Admin("10.0.0.7", 9601)),
        ("http://gateway-1.internal/", Admin("gateway-1.internal", 9601)),
        ("10.0.0.7:9700", Admin("10.0.0.7", 9700)),
        ("localhost", Admin("localhost", 9601)),
        ("[::1]:9700", Admin("::1", 9700)),
    ],
)
def test_admin_listeners(text: str, admin: Admin) -> None:
    assert AdminListener().convert(text, None, None) == admin


@pytest.mark.parametrize(
    "text", ["", "https://a:9601", "a:b", "a:70000", "http://a/status", "u:p@a", "a?b", "[::1", "http://:9601"]
)
def test_what_is_no_admin_listener_is_refused_with_an_example(text: str) -> None:
    assert "is no admin listener such as http://10.0.0.7:9601" in refusal(AdminListener(), text)
