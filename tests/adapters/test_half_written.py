"""Half of a file that nobody goes on with is removed; what somebody may be writing now is not."""

import os
from pathlib import Path

from apigw.adapters.half_written import remove_half_written


def test_what_is_old_goes_and_only_of_this_file(tmp_path: Path) -> None:
    old, other = [".orders.json.x1", ".orders.json.1.2"], [".users.json.x1", "orders.json", "orders.json.x"]
    fresh = ".orders.json.fresh"
    names = [*old, *other, fresh]
    for name in names:
        (tmp_path / name).write_bytes(b"{")
        if name != fresh:
            os.utime(tmp_path / name, (1, 1))
    remove_half_written(tmp_path / "orders.json")
    assert sorted(os.listdir(tmp_path)) == sorted([*other, fresh])


def test_a_folder_that_is_not_there_and_one_that_is_named_like_it_harm_nobody(tmp_path: Path) -> None:
    remove_half_written(tmp_path / "none" / "orders.json")
    (tmp_path / ".orders.json.folder").mkdir()
    os.utime(tmp_path / ".orders.json.folder", (1, 1))
    remove_half_written(tmp_path / "orders.json")
    assert os.listdir(tmp_path) == [".orders.json.folder"]
