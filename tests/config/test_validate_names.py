"""Names over all files (more in tests/golden/references.yaml)."""

from pathlib import Path
from typing import Any, Callable

Refused = Callable[[Any], list[str]]


def test_a_file_that_cannot_be_read_hides_names_so_none_is_called_unknown(
    refused: Refused, document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "backends.yaml").write_text("backends: [")
    document |= {"backends": [], "config": {"include": ["backends.yaml"]}}
    assert refused(document) == ["backends.yaml:2: not valid YAML: did not find expected node content"]


def test_a_name_whose_record_has_other_problems_is_known(refused: Refused, document: dict[str, Any]) -> None:
    document["backends"][0]["max_rps"] = -1
    assert len(refused(document)) == 1


def test_both_places_of_a_pattern_are_named(refused: Refused, document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "routes:\n  - {route_id: s, pattern: /r/*, methods: [PUT], backend_service: b, auth_type: none}\n"
    )
    assert refused(document | {"config": {"include": ["more.yaml"]}}) == [
        "more.yaml:2: the pattern '/r/*' is also that of route 'r' (apigw.yaml:11); only one of them could ever match"
    ]


def test_an_exact_pattern_beside_a_wildcard_is_no_duplicate(refused: Refused, document: dict[str, Any]) -> None:
    document["routes"].append(document["routes"][0] | {"route_id": "s", "pattern": "/r"})
    assert refused(document) == []
