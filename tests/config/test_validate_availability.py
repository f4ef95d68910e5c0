"""What this version cannot do is refused by one table; tests/golden/unavailable.yaml uses every row."""

from pathlib import Path

from apigw.config.validate_availability import ROWS

ERRORS = Path(__file__).parent.parent / "golden" / "unavailable.errors"


def test_every_row_is_in_the_golden_file() -> None:
    text = ERRORS.read_text()
    for row in ROWS:
        assert f"{row.what}: not available in this version" in text
    assert len(text.splitlines()) == len(ROWS)
