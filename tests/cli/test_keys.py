"""`apigwctl keys` against SQLite, PostgreSQL and Redis."""

import json
import re
import time
from pathlib import Path

import pytest
import redis as redis_py

from apigw.adapters.key_store import KeyStore
from apigw.core.api_keys import digest
from tests.cli.tool import Tool
from tests.postgresql import PostgreSQL
from tests.servers import RedisServer, free_port

KEY = re.compile(r"pk_live_[A-Za-z0-9]{16}_[A-Za-z0-9]{43}")


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, tool: Tool) -> Tool:
    """A tool whose keys are in a database of each kind."""
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        tool.sections["auth"]["api_keys"]["database_url"] = server.database()
    return tool


def new(tool: Tool, *more: str, partner: str = "acme") -> dict[str, object]:
    made = tool.run("keys", "create", "--partner", partner, "--json", *more)
    assert made.status == 0, made
    found: dict[str, object] = made.json()
    return found


def test_the_life_of_a_key(anywhere: Tool) -> None:
    """Made, shown, listed, rotated, revoked; the whole key at its making only."""
    tool = anywhere
    options = ("--tier", "partner", "--scope", "orders:read", "--allow-ip", "10.0.0.0/8", "--allow-ip", "192.0.2.1")
    key = new(tool, *options, "--expires", "2099-01-01")
    key_id, presented = str(key["key_id"]), str(key.pop("key"))
    assert KEY.fullmatch(presented) and presented.split("_")[2] == key_id
    assert key == {
        "key_id": key_id,
        "partner_id": "acme",
        "state": "active",
        "tier": "partner",
        "scopes": ["orders:read"],
        "networks": ["10.0.0.0/8", "192.0.2.1/32"],
        "created_at": key["created_at"],
        "expires_at": "2099-01-01T00:00:00Z",
        "revoked_at": None,
        "rotated_to": None,
    }
    assert tool.run("keys", "show", key_id, "--json").json() == key
    assert tool.run("keys", "list", "--json").json() == [key]

    successor = tool.run("keys", "rotate", key_id, "--overlap", "1h", "--json").json()
    assert KEY.fullmatch(successor["key"]) and successor["key"] != presented
    assert (successor["tier"], successor["scopes"], successor["expires_at"]) == (
        "partner",
        ["orders:read"],
        "2099-01-01T00:00:00Z",
    )
    assert successor["replaces"]["rotated_to"] == successor["key_id"]
    assert successor["replaces"]["state"] == "rotated"

    revoked = tool.run("keys", "revoke", key_id, "--json").json()
    assert revoked["state"] == "revoked" and revoked["revoked_at"]
    again = tool.run("keys", "revoke", key_id, "--json").json()
    assert again["revoked_at"] == revoked["revoked_at"], "once revoked it stays so"
    states = {one["key_id"]: one["state"] for one in tool.run("keys", "list", "--json").json()}
    assert states == {key_id: "revoked", successor["key_id"]: "active"}
    everything = "".join(tool.run("keys", *words).out for words in (("list",), ("show", key_id), ("list", "--json")))
    assert not KEY.search(everything) and "$2b$" not in everything


def test_the_key_is_shown_once_and_says_so(tool: Tool) -> None:
    said = tool.run("keys", "create", "--partner", "acme").out
    assert len(KEY.findall(said)) == 1
    assert "the only time that the key is shown" in said
    (found,) = KEY.findall(said)
    rotated = tool.run("keys", "rotate", found.split("_")[2]).out
    assert len(KEY.findall(rotated)) == 1 and f"The old key, {found.split('_')[2]}, is good until" in rotated


def test_the_overlap_is_the_configured_one(tool: Tool) -> None:
    tool.sections["auth"]["api_keys"]["rotation_overlap_days"] = 3
    key_id = str(new(tool)["key_id"])
    tool.run("keys", "rotate", key_id)
    store = KeyStore(tool.sections["auth"]["api_keys"]["database_url"])
    record = store.find(key_id)
    store.close()
    assert record is not None and record.expires_s == pytest.approx(time.time() + 3 * 86_400, abs=60)


def test_a_list_may_be_of_one_partner_and_of_some_states(tool: Tool) -> None:
    ids = [str(new(tool, partner=partner)["key_id"]) for partner in ("acme", "acme", "globex")]
    tool.run("keys", "revoke", ids[0])

    def listed(*options: str) -> list[str]:
        return [one["key_id"] for one in tool.run("keys", "list", "--json", *options).json()]

    assert listed("--partner", "acme") == ids[:2]
    assert listed("--state", "active") == ids[1:]
    assert listed("--state", "revoked", "--partner", "acme") == ids[:1]
    assert listed("--partner", "nobody") == []
    table = tool.run("keys", "list").out
    assert [line.split()[0] for line in table.splitlines()[2:]] == ids


def test_what_a_key_refers_to_must_exist_and_the_nearest_name_is_offered(tool: Tool) -> None:
    said = tool.refused("keys", "create", "--partner", "acme", "--tier", "partnr")
    assert "no tier 'partnr'; did you mean 'partner'?" in said
    made = tool.run("keys", "create", "--partner", "acme", "--scope", "orders:raed", "--json")
    assert made.status == 0, "a route for it may come"
    assert "no route requires the scope 'orders:raed'; did you mean 'orders:read'?" in made.err


def test_an_unknown_id_is_told_with_the_nearest_one(tool: Tool) -> None:
    key_id = str(new(tool)["key_id"])
    wrong = key_id[:-1] + ("a" if key_id[-1] != "a" else "b")
    for verb in ("show", "rotate", "revoke"):
        assert f"there is no API key {wrong}; did you mean '{key_id}'?" in tool.refused("keys", verb, wrong)


def test_a_key_that_has_ended_is_not_rotated(tool: Tool) -> None:
    key_id = str(new(tool)["key_id"])
    tool.run("keys", "revoke", key_id)
    assert f"API key {key_id} is revoked" in tool.refused("keys", "rotate", key_id)


def test_a_partner_that_no_header_can_carry_is_refused(tool: Tool) -> None:
    assert "visible ASCII" in tool.refused("keys", "create", "--partner", "a b")
    assert "would have expired already" in tool.refused("keys", "create", "--partner", "a", "--expires", "2001-01-01")


@pytest.mark.parametrize("partner", ["\udcff", "é", "a b", "", "x" * 257])
def test_a_list_of_a_partner_that_there_cannot_be_is_refused_as_a_key_of_it_is(anywhere: Tool, partner: str) -> None:
    """A byte that is no UTF-8, as a shell passes it, is one that no database can be asked for."""
    new(anywhere)
    said = {anywhere.refused("keys", verb, "--partner", partner) for verb in ("list", "create")}
    assert said == {"apigwctl: partner_id is not 1 to 256 visible ASCII characters\n"}


def test_an_end_that_no_date_can_say_makes_and_rotates_no_key(tool: Tool) -> None:
    key_id = str(new(tool)["key_id"])
    for words in (("create", "--partner", "acme"), ("rotate", key_id)):
        said = tool.refused("keys", *words, "--expires", "9999-12-31T23:59:59-01:00", status=2)
        assert "is no time such as" in said and "from 1970 to 9999 in UTC" in said
    assert [(one["key_id"], one["state"]) for one in tool.run("keys", "list", "--json").json()] == [(key_id, "active")]


def test_a_row_whose_time_is_no_date_hides_no_other(tool: Tool) -> None:
    """Written by an older version, or by hand."""
    first = str(new(tool)["key_id"])
    store = KeyStore(tool.sections["auth"]["api_keys"]["database_url"], cost=4)
    odd = store.create("acme", expires_s=1e300).record.key_id
    store.close()
    assert {one["key_id"]: one["expires_at"] for one in tool.run("keys", "list", "--json").json()} == {
        first: None,
        odd: "1e+300",
    }
    assert "1e+300" in tool.run("keys", "list").out and "1e+300" in tool.run("keys", "show", odd).out


def test_a_database_that_is_down_is_a_sentence_without_its_password(tool: Tool) -> None:
    url = f"postgresql://apigw:s3cret@127.0.0.1:{free_port()}/keys"
    tool.sections["auth"]["api_keys"]["database_url"] = url
    said = tool.refused("keys", "list")
    assert "the database of API keys does not do it" in said and "s3cret" not in said


def test_a_folder_that_does_not_exist_is_named(tool: Tool, tmp_path: Path) -> None:
    tool.sections["auth"]["api_keys"]["database_url"] = f"sqlite:///{tmp_path}/nowhere/keys.db"
    assert f"the folder {tmp_path}/nowhere of the database" in tool.refused("keys", "create", "--partner", "acme")


@pytest.mark.parametrize("words", [("list",), ("show", "a"), ("rotate", "a"), ("revoke", "a")])
def test_a_database_that_is_not_there_is_made_by_the_first_key_alone(
    tool: Tool, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Its volume may not be mounted; gateways would take an empty one in its place for the end of all keys."""
    said = tool.refused("keys", *words)
    assert f"there is no database of API keys at {tmp_path}/keys.db; " in said and "`apigwctl keys create`" in said
    assert [file.name for file in tmp_path.iterdir()] == ["apigw.yaml"]
    new(tool)
    assert (tmp_path / "keys.db").exists()


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
def test_what_redis_has_of_a_changed_key_is_deleted_and_gateways_are_told(
    tool: Tool, redis: RedisServer, verb: str
) -> None:
    tool.sections["redis"] = {"url": redis.url}
    key, other = new(tool), new(tool)
    for one in (key, other):
        name = digest(str(one["key"]).encode())
        redis.command("SADD", f"apikeys:{{{one['key_id']}}}", name)
        redis.command("SET", f"apikey:{name}", "{}")
    client = redis_py.Redis(port=redis.port)
    heard = client.pubsub()
    heard.subscribe("apigw:apikeys")
    assert (heard.get_message(timeout=5) or {})["type"] == "subscribe"
    assert tool.run("keys", verb, str(key["key_id"])).err == ""
    assert json.loads((heard.get_message(timeout=5) or {})["data"]) == {"key_id": key["key_id"]}
    heard.close()
    client.close()
    assert redis.command("EXISTS", f"apikey:{digest(str(key['key']).encode())}", f"apikeys:{{{key['key_id']}}}") == 0
    assert redis.command("EXISTS", f"apikey:{digest(str(other['key']).encode())}") == 1


def test_with_redis_down_it_is_done_all_the_same_and_says_how_long_it_takes(tool: Tool) -> None:
    tool.sections["redis"] = {"url": f"redis://:s3cret@127.0.0.1:{free_port()}/0"}
    key_id = str(new(tool)["key_id"])
    ran = tool.run("keys", "revoke", key_id, "--json")
    assert ran.status == 0 and ran.json()["state"] == "revoked"
    assert "Redis does not answer" in ran.err and "within 5 seconds" in ran.err and "s3cret" not in ran.err
