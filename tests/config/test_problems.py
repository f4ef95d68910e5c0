"""Problems: their text, their order, the nearest right name."""

import time

from apigw.config.problems import MAX_PROBLEMS, Problem, Problems, listed, shown


def test_a_problem_is_one_line_with_place_and_suggestion() -> None:
    assert str(Problem("a.yaml", 3, "x is wrong")) == "a.yaml:3: x is wrong"
    assert str(Problem("a.yaml", 3, "x is wrong", "y")) == "a.yaml:3: x is wrong; did you mean 'y'?"


def test_problems_come_by_file_as_read_then_by_line_and_once() -> None:
    problems = Problems()
    problems.enter("main.yaml")
    problems.add("z.yaml", 1, "third")
    problems.add("main.yaml", 9, "second")
    problems.add("main.yaml", 2, "first")
    problems.add("main.yaml", 2, "first")
    assert [problem.message for problem in problems.in_order()] == ["first", "second", "third"]


def test_a_flood_of_problems_is_counted_not_kept() -> None:
    problems = Problems()
    for line in range(MAX_PROBLEMS + 5):
        problems.add("a.yaml", line + 1, f"wrong {line}")
    assert len(problems.found) == MAX_PROBLEMS
    assert problems.in_order()[-1].message == "5 more problems are not shown"


def test_the_nearest_name_ignores_case_and_is_none_when_nothing_is_near() -> None:
    problems = Problems()
    assert problems.nearest("GET_", ["get", "post"]) == "get"
    assert problems.nearest("standrad", ["standard", "premium"]) == "standard"
    assert problems.nearest("zzzzzz", ["standard"]) is None
    assert problems.nearest("x" * 10_000, ["x" * 10_000]) is None


def test_many_wrong_names_among_many_right_ones_do_not_take_minutes() -> None:
    problems = Problems()
    names = [f"backend-{number:05}" for number in range(5000)]
    started_s = time.process_time()
    found = [problems.nearest(f"backnd-{number:05}", names) for number in range(5000)]
    assert found[0] is not None and found[-1] is None
    assert time.process_time() - started_s < 5


def test_quoted_values_are_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 60
    assert listed(["a", "b", "c"]) == "a, b or c" and listed(["a"]) == "a"
