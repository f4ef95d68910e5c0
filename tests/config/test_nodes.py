"""YAML text -> tree: lines, strict scalars, bounds, and nothing raised whatever the text."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.config import nodes
from apigw.config.nodes import MAX_DEPTH, Mapping, Scalar, Sequence, read_tree, resolved
from apigw.config.problems import Problems


def tree(text: str) -> tuple[Any, list[str]]:
    problems = Problems()
    node = read_tree(text, "f", problems)
    return node, [str(problem) for problem in problems.in_order()]


def plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: plain(child) for key, (_line, child) in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Sequence) else node.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("~", None),
        ("", None),
        ("10", 10),
        ("-3", -3),
        ("0777", "0777"),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-", "-"),
        (".", "."),
        ("1.2.3.4", "1.2.3.4"),
        ("-.inf", float("-inf")),
        ("2027-06-01", "2027-06-01"),
        ("9" * 400, "9" * 400),
    ],
)
def test_plain_scalars_are_read_by_yaml_1_2(text: str, value: object) -> None:
    got = resolved(text)
    assert got == value and type(got) is type(value)


def test_quoted_scalars_are_text_and_lines_count_from_one() -> None:
    node, problems = tree("a: '10'\nb:\n  - true\n  - c: x\n")
    assert problems == [] and plain(node) == {"a": "10", "b": [True, {"c": "x"}]}
    assert node.entries["b"][0] == 2 and node.entries["b"][1].items[1].line == 4


def test_an_empty_text_is_an_empty_mapping() -> None:
    assert plain(tree("")[0]) == {} and plain(tree("# only words\n")[0]) == {} and plain(tree("---\n")[0]) == {}


def test_json_is_yaml() -> None:
    assert plain(tree('{"a": [1, 2.5, null, "x\\/y\\u00e9"]}')[0]) == {"a": [1, 2.5, None, "x/yé"]}


def test_aliases_stand_for_their_anchors() -> None:
    assert plain(tree("a: &x {b: 1}\nc: *x\n")[0]) == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_alias_inside_its_own_anchor_is_refused() -> None:
    assert tree("a: &x [*x]")[1] == ["f:1: the alias 'x' has no anchor before it"]


def test_a_billion_laughs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol,lol]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    node, problems = tree("\n".join(lines))
    assert node is None and "aliases stand for more than" in problems[-1]


def test_depth_is_bounded() -> None:
    node, problems = tree("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert node is None and problems == [f"f:1: nested deeper than {MAX_DEPTH} levels"]
    assert tree("[" * 100_000)[0] is None
    assert tree("- " * 100_000)[0] is None


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_NODES", 1000)
    node, problems = tree("[" + "1," * 1001 + "]")
    assert node is None and problems == ["f:1: more than 1000 values"]


def test_a_key_that_stands_twice_names_both_lines() -> None:
    node, problems = tree("a: 1\nb: 2\na: 3\n")
    assert problems == ["f:3: the key 'a' stands twice; first on line 1"]
    assert plain(node) == {"a": 1, "b": 2}


def test_tags_other_than_the_standard_ones_are_refused() -> None:
    assert tree("a: !!python/object/apply:os.system [x]")[1] != []
    assert tree("a: !mine {}")[1] != []
    assert plain(tree("a: !!str 5")[0]) == {"a": "5"}


def test_bytes_that_are_no_yaml_are_a_problem_with_a_line() -> None:
    assert tree("a: 1\nb: [\n")[1][0].startswith("f:3: not valid YAML")
    assert tree("a: 1\nb: \x01\n")[1][0].startswith("f:2: not valid YAML")
    assert tree('a: "\\UFFFFFFFF"')[0] is None


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#,? \n\t\\0x<~\x01é\u2028\ud7ff"), max_size=60))
def test_no_text_raises(text: str) -> None:
    node, problems = tree(text)
    assert node is not None or problems
    if isinstance(node, Scalar):
        assert node.line >= 1
