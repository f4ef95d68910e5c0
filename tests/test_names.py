"""The tables of names and the page that explains them say the same."""

from pathlib import Path

import pytest

from apigw.core.redaction import SECRET_PARAMETERS
from apigw.names import DURATION_BUCKETS_S, LOG_FIELDS, METRICS, OVERHEAD_BUCKETS_S, SHED, UPSTREAM_REASONS

PAGE = (Path(__file__).parents[1] / "docs" / "observability.rst").read_text()


@pytest.mark.parametrize("name", [*LOG_FIELDS, *METRICS, *UPSTREAM_REASONS, SHED])
def test_every_log_field_metric_and_reason_has_its_row(name: str) -> None:
    assert f"\n``{name}`` " in PAGE


@pytest.mark.parametrize("name", METRICS)
def test_every_label_is_named_in_the_metrics_row(name: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"``{name}`` ")]
    assert ", ".join(METRICS[name].labels) in row


def test_every_hidden_parameter_is_named() -> None:
    lowered = PAGE.lower()
    assert all(name in lowered for name in SECRET_PARAMETERS)


def test_the_log_has_the_contracts_26_fields_and_counters_are_named_as_such() -> None:
    assert len(LOG_FIELDS) == len(set(LOG_FIELDS)) == 26
    for name, metric in METRICS.items():
        assert (metric.kind == "counter") == name.endswith("_total")


@pytest.mark.parametrize("buckets", [DURATION_BUCKETS_S, OVERHEAD_BUCKETS_S])
def test_buckets_ascend_to_the_longest_sane_timeout(buckets: tuple[float, ...]) -> None:
    assert list(buckets) == sorted(set(buckets))
    assert buckets[0] <= 0.0005
    assert buckets[-1] == 30.0
