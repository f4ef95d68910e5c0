"""Files are read with a bound and never waited for."""

import os
from pathlib import Path

import pytest

from apigw.config.reading import Unreadable, read_bounded


def test_a_file_of_the_bound_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(Unreadable, match="is larger than 4 bytes"):
        read_bounded(tmp_path / "a", 4)


def test_each_failure_has_its_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "loop", "cannot be read: Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (Path("/tmp/\0"), "cannot be read: bad path"),
    ):
        with pytest.raises(Unreadable) as caught:
            read_bounded(path, 10)
        assert str(caught.value) == reason
