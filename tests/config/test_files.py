"""The main file and what it includes: every way a file can fail, and seeing that one changed."""

import copy
import os
import random
import re
import resource
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apigw.config import files
from apigw.config.files import fingerprint, load
from apigw.config.model import Config
from apigw.errors import ConfigurationError

Document = dict[str, Any]
Loaded = Callable[[Any], Config]
Refused = Callable[[Any], list[str]]


def test_included_files_are_read_sorted_and_once(loaded: Loaded, document: Document, tmp_path: Path) -> None:
    (tmp_path / "routes.d").mkdir()
    for name in ("b", "a"):
        route = document["routes"][0] | {"route_id": name, "pattern": f"/{name}"}
        (tmp_path / "routes.d" / f"{name}.yaml").write_text(yaml.safe_dump({"routes": [route]}))
    (tmp_path / "routes.d" / ".hidden.yaml").write_text("[")
    (tmp_path / "routes.d" / "a.yaml~").write_text("[")
    document["config"] = {"include": ["routes.d/*.yaml", "routes.d/a.yaml", "./routes.d/[ab].yaml"]}
    config = loaded(document)
    assert [route.route_id for route in config.routes] == ["r", "a", "b"]
    assert config.sources == tuple(tmp_path / name for name in ("apigw.yaml", "routes.d/a.yaml", "routes.d/b.yaml"))


def test_relative_paths_start_at_the_main_file(loaded: Loaded, document: Document, tmp_path: Path) -> None:
    config = loaded(document | {"gateway": {"state_dir": "state"}})
    assert config.gateway.state_dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "1: the file does not exist"),
        (b"a: 1\nb: \xff\n", "2: not valid UTF-8"),
        (b"x" * (files.MAX_FILE_BYTES + 1), "1: the file is larger than 8388608 bytes"),
        (b"\x00", "1: not valid YAML: control characters are not allowed"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "apigw.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(path, hostname="h", now_s=0.0)
    assert [str(problem) for problem in caught.value.problems] == [f"{path}:{expected}"]


def test_a_folder_and_a_pipe_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path, "is a directory"), (tmp_path / "pipe", "is not a regular file")):
        with pytest.raises(ConfigurationError, match=reason):
            load(path, hostname="h", now_s=0.0)


def test_a_byte_order_mark_is_no_content(loaded: Loaded, tmp_path: Path, document: Document) -> None:
    assert loaded("\ufeff" + yaml.safe_dump(document)).routes


def test_a_glob_whose_folder_is_missing_is_refused_since_its_routes_would_vanish(
    refused: Refused, document: Document, tmp_path: Path
) -> None:
    document["config"] = {"include": ["routes.d/*.yaml"]}
    assert "config.include 'routes.d/*.yaml' cannot be followed" in refused(document)[0]
    (tmp_path / "routes.d").mkdir()
    assert refused(document) == []


def test_files_larger_than_the_total_bound_are_refused(
    refused: Refused, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_TOTAL_BYTES", 100)
    for name in "abc":
        (tmp_path / f"{name}.part").write_text("#" * 60)
    document["config"] = {"include": ["*.part"]}
    assert refused(document) == ["b.part:1: the included files are larger than 100 bytes together"]
    monkeypatch.setattr(files, "MAX_FILES", 2)
    assert refused(document) == ["apigw.yaml:17: config.include matches 3 files, more than 2"]


def test_the_fingerprint_changes_with_each_file_that_matters(
    loaded: Loaded, document: Document, tmp_path: Path, certificate_pair: Any
) -> None:
    (tmp_path / "routes.d").mkdir()
    (tmp_path / "jwks.json").write_text('{"keys": []}')
    cert, key = certificate_pair("tls")
    tls = {"certificates": [{"cert_file": str(cert), "key_file": str(key)}]}
    document["listeners"].append({"address": "127.0.0.1", "port": 8443, "tls": tls})
    document["auth"] = {"jwt": {"issuer": "i", "audience": "a", "jwks_file": "jwks.json"}}
    document["config"] = {"include": ["routes.d/*.yaml"]}
    config = loaded(document)
    main = tmp_path / "apigw.yaml"
    seen = [fingerprint(main, config)]
    assert fingerprint(main, config) == seen[0]
    part = tmp_path / "routes.d" / "a.yaml"
    for change in (
        lambda: part.write_text("routes: []"),
        lambda: part.write_text("routes: [ ]"),
        lambda: os.utime(part, ns=(0, 5)),
        lambda: cert.write_text("x"),
        lambda: key.unlink(),
        lambda: (tmp_path / "jwks.json").unlink(),
        lambda: part.unlink(),
        lambda: main.unlink(),
    ):
        change()
        now = fingerprint(main, config)
        assert now != seen[-1]
        seen.append(now)


def test_a_file_that_only_a_refused_main_file_includes_is_watched(
    loaded: Loaded, refused: Refused, document: Document, tmp_path: Path
) -> None:
    config = loaded(document)
    (tmp_path / "new.d").mkdir()
    (tmp_path / "new.d" / "a.yaml").write_text("routes: 5")
    assert refused(document | {"config": {"include": ["new.d/*.yaml"]}}) == [
        "new.d/a.yaml:1: routes must be a list, not the number 5"
    ]
    before = fingerprint(tmp_path / "apigw.yaml", config)
    (tmp_path / "new.d" / "a.yaml").write_text("routes: []")
    assert fingerprint(tmp_path / "apigw.yaml", config) != before


def test_the_fingerprint_of_nothing_raises_nothing(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "none.yaml", None) == ((str(tmp_path / "none.yaml"), None),)


KEYS = (
    "listeners backends routes gateway limits auth jwt redis url rate_limits tiers tier config include address port "
    "tls certificates cert_file key_file name instances host pattern methods route_id backend_service auth_type "
    "deprecated sunset_date access_log sinks circuit_breaker recovery_steps load_shedding cpu_percent canary owner <<"
).split()
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70_000),
    st.floats(),
    st.sampled_from("127.0.0.1 /a/* /* GET b none jwt redis://:p@h * 2027-01-01 ../* //[".split()),
    st.text(max_size=8),
)
TREES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=8))
def test_any_tree_is_a_configuration_or_a_configuration_error(tmp_path: Path, tree: Document) -> None:
    (tmp_path / "apigw.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    try:
        load(tmp_path / "apigw.yaml", hostname="h", now_s=1.0)
    except ConfigurationError as error:
        assert error.problems and str(error)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_a_mutilated_configuration_is_a_configuration_or_a_configuration_error(
    tmp_path: Path, chance: random.Random
) -> None:
    """A valid file with one value, somewhere, replaced by a value of another place or kind."""
    tree = copy.deepcopy(VALID)
    places = list(_places(tree))
    holder, key = chance.choice(places)
    other_holder, other_key = chance.choice(places)
    holder[key] = chance.choice(
        [None, True, -1, 0, 1.5, "", "x", "*", [], {}, [None], {"a": 1}, other_holder[other_key]]
    )
    try:
        text = yaml.dump(tree, Dumper=_NoAliases)
    except RecursionError:  # a part was put into itself
        return
    (tmp_path / "apigw.yaml").write_text(text, encoding="utf-8")
    try:
        load(tmp_path / "apigw.yaml", hostname="h", now_s=1_780_315_200.0)
    except ConfigurationError as error:
        assert error.problems and str(error)


VALID = yaml.safe_load((Path(__file__).parent.parent / "golden" / "valid.yaml").read_text())


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _places(tree: Any) -> Any:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def test_five_thousand_routes_load_in_seconds_and_leave_little_behind(
    loaded: Loaded, document: Document, tmp_path: Path
) -> None:
    """The bound is 3 s on a quiet machine (measured: 1 s); CPU time, since others may use it too."""
    route = (
        "  - {route_id: r%d, pattern: /api/v2/r%d/*, methods: [GET, POST], backend_service: b, auth_type: none,\n"
        "     strip_prefix: /api/v2, timeout_ms: 10000, circuit_breaker: true, priority: P1, deprecated: false,\n"
        "     cors_allowed_origins: ['https://app.example.com'], max_body_bytes: 10485760, websocket: false}\n"
    )
    text = yaml.safe_dump({key: document[key] for key in ("listeners", "backends")}) + "routes:\n"
    text += "".join(route % (number, number) for number in range(5000))
    loaded(document)
    before_bytes = _resident_bytes()
    started_s = time.process_time()
    config = loaded(text)
    assert time.process_time() - started_s < 3
    assert len(config.routes) == 5000
    assert _resident_bytes() - before_bytes < 40 * 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


ETC = Path(__file__).parent.parent.parent / "etc"


def test_the_packaged_configuration_is_valid_as_it_stands() -> None:
    config = load(ETC / "apigw.yaml", hostname="h", now_s=1.0)
    assert [route.route_id for route in config.routes] == ["gateway-status"]
    assert config.rate_limits.unmatched_tier == "unauthenticated" and config.routes[0].owner == "team-platform"


def test_the_packaged_configuration_with_all_comments_taken_away_lacks_only_its_certificate(tmp_path: Path) -> None:
    """A commented setting begins with "#" before its own indentation, prose with "# " and a word."""
    for source in (ETC / "apigw.yaml", ETC / "routes.d/example.yaml", ETC / "backends.d/example.yaml"):
        target = tmp_path / source.relative_to(ETC)
        target.parent.mkdir(exist_ok=True)
        target.write_text(re.sub(r"^#(?=\S|  )", "", source.read_text(), flags=re.MULTILINE))
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "apigw.yaml", hostname="h", now_s=1.0)
    messages = [problem.message.replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert messages == ["cert_file tls/api.crt does not exist", "key_file tls/api.key does not exist"]
