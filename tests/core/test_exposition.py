"""The text is what prometheus_client's own parser reads back."""

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from apigw.core.exposition import Histogram, header, histogram_samples, number, samples

# The parser splits on line ends that are not "\n" too; Prometheus does not. Labels come from configuration anyway.
_CHARACTERS = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from('\\"\n{},=')
_LABELS = st.text(_CHARACTERS, max_size=30)
_VALUES = st.floats() | st.integers(-(2**60), 2**60).map(float)


@given(st.dictionaries(st.tuples(_LABELS, _LABELS), _VALUES, max_size=5))
def test_any_labels_and_values_are_read_back(rows: dict[tuple[str, str], float]) -> None:
    text = header("x_total", "counter", "Help.") + samples("x_total", ("a", "b"), rows.items())
    (family,) = text_string_to_metric_families(text)
    read = {(sample.labels["a"], sample.labels["b"]): sample.value for sample in family.samples}
    assert read.keys() == rows.keys()
    for key, value in rows.items():
        assert read[key] == value or (math.isnan(read[key]) and math.isnan(value))


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_is_cumulative_and_has_its_sum_and_count(values: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    text = header("x_seconds", "histogram", "Help.") + histogram_samples("x_seconds", ("route",), ("r",), histogram)
    (family,) = text_string_to_metric_families(text)
    read = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    for bound in ("0.5", "1.0", "10.0"):
        assert read["x_seconds_bucket", bound] == sum(value <= float(bound) for value in values)
    assert read["x_seconds_bucket", "+Inf"] == read["x_seconds_count", None] == len(values)
    assert math.isclose(read["x_seconds_sum", None], sum(values), abs_tol=1e-9)


def test_numbers_are_spelled_as_prometheus_reads_them() -> None:
    spelled = [number(value) for value in (0, 1.0, 2.5, 1e20, math.inf, -math.inf, math.nan)]
    assert spelled == ["0", "1", "2.5", "1e+20", "+Inf", "-Inf", "NaN"]
