"""The memories of API keys: bounded, with an end, and quick to forget a key id."""

from apigw.adapters.api_key_cache import Good, GoodKeys, Remembered
from apigw.core.api_keys import made


def good(key_id: str, presented: bytes) -> Good:
    return Good(made(key_id, "f" * 64, partner_id="acme"), presented, 300.0, 0.0)


def test_a_good_key_is_found_by_the_bytes_that_were_shown() -> None:
    keys = GoodKeys()
    keys.add(good("a", b"key of a"))
    assert keys.by_presented[b"key of a"].key.key_id == "a"
    assert b"other" not in keys.by_presented


def test_an_id_is_forgotten_with_every_key_of_it() -> None:
    keys = GoodKeys()
    for presented in (b"1", b"2"):
        keys.add(good("a", presented))
    keys.add(good("b", b"3"))
    assert keys.drop("a") == 2 and keys.drop("a") == 0 and keys.drop("unknown") == 0
    assert list(keys.by_presented) == [b"3"] and list(keys.ids()) == ["b"]


def test_good_keys_are_bounded_and_the_oldest_goes() -> None:
    keys = GoodKeys(most=2)
    for number in (b"1", b"2", b"3"):
        keys.add(good(number.decode(), number))
    assert list(keys.by_presented) == [b"2", b"3"] and list(keys.ids()) == ["2", "3"]
    keys.add(good("2", b"2"))
    assert list(keys.by_presented) == [b"3", b"2"] and len(keys) == 2
    keys.clear()
    assert len(keys) == 0 and keys.drop("2") == 0


def test_what_is_remembered_ends_at_its_second() -> None:
    memory: Remembered[str, str] = Remembered(10, 60.0)
    memory.put("a", "wrong", 100.0)
    assert memory.get("a", 159.9) == "wrong" and memory.get("a", 160.0) is None
    assert len(memory) == 0 and memory.get("b", 0.0) is None


def test_what_is_remembered_is_bounded_and_what_ends_first_goes() -> None:
    memory: Remembered[int, bool] = Remembered(2, 60.0)
    for number in range(3):
        memory.put(number, True, float(number))
    assert [memory.get(number, 3.0) for number in range(3)] == [None, True, True]
    memory.put(1, True, 4.0)
    memory.put(3, True, 5.0)
    assert memory.get(2, 6.0) is None and memory.get(1, 63.5), "asked again, it counts from then"
    memory.forget([1, 99])
    assert memory.get(1, 6.0) is None
