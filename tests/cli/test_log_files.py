"""Log files as they lie on a gateway's disk: rotated, compressed, torn."""

import bz2
import gzip
import json
import lzma
import os
import time
from pathlib import Path
from typing import Any

import pytest

from apigw.cli.log_files import LogReader, log_files
from apigw.cli.refusals import Refused
from apigw.cli.settings import Settings
from tests.cli.tool import Tool


def entry(number: int, **more: Any) -> bytes:
    """A line, `number` seconds into an hour."""
    made = {"timestamp": f"2026-11-25T10:{number // 60:02d}:{number % 60:02d}.000Z", "route_id": "r", "status": 200}
    return json.dumps({**made, **more}).encode() + b"\n"


def configured(tool: Tool) -> tuple[Settings, Path]:
    """A configuration with a log, and the log's path."""
    path = tool.main_file.parent / "access.log"
    tool.sections["access_log"] = {"sinks": [{"type": "stdout"}, {"type": "file", "path": str(path)}]}
    tool.run("keys", "list")
    return Settings(tool.main_file), path


def put(path: Path, content: bytes, age_s: float = 0.0) -> Path:
    path.write_bytes(content)
    at_s = time.time() - age_s
    os.utime(path, (at_s, at_s))
    return path


def test_rotated_files_are_read_too_the_oldest_first_whatever_packed_them(tool: Tool) -> None:
    settings, path = configured(tool)
    put(path, entry(4))
    put(path.with_name("access.log.1"), entry(3), 100)
    put(path.with_name("access.log.2.gz"), gzip.compress(entry(2)), 200)
    put(path.with_name("access.log-20261124.xz"), lzma.compress(entry(1)), 300)
    put(path.with_name("access.log.3.bz2"), bz2.compress(entry(0)), 400)
    put(path.with_name("other.log"), entry(9))
    os.link(path, path.with_name("access.log.same"))
    reader = LogReader(log_files(settings, ()))
    assert [one["timestamp"][17:19] for one, _ in reader] == ["00", "01", "02", "03", "04"]
    assert reader.odd == 0


def test_files_may_be_named_instead(tool: Tool) -> None:
    settings, path = configured(tool)
    other = put(path.with_name("other.log"), entry(1))
    assert log_files(settings, (other,)) == [other]


def test_where_there_is_no_log_it_says_where_one_was_looked_for(tool: Tool) -> None:
    settings, path = configured(tool)
    with pytest.raises(Refused, match=f"no access log at {path}; --log FILE"):
        log_files(settings, ())
    del tool.sections["access_log"]
    tool.run("keys", "list")
    with pytest.raises(Refused, match="no access_log sink of type file"):
        log_files(Settings(tool.main_file), ())


def test_what_is_no_entry_is_left_out_and_counted_but_not_the_line_in_the_making(
    tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = configured(tool)
    torn = entry(1)[:30] + b"\n"
    long = b"x" * 50_000 + b"\n"
    put(path, b"\n[1]\n{}\n" + torn + entry(2) + long + entry(3) + b"\xff\xfe\n" + entry(4)[:40])
    reader = LogReader([path])
    assert [one["timestamp"][17:19] for one, _ in reader] == ["02", "03"]
    assert reader.odd == 6
    reader.tell()
    assert "6 lines that are no entries" in capsys.readouterr().err


def test_only_what_is_new_enough_is_given_and_older_files_are_not_opened(tool: Tool) -> None:
    _, path = configured(tool)
    now_s = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now_s - 30))
    put(path, entry(1) + entry(1, timestamp=stamp))
    old = put(path.with_name("access.log.1.gz"), b"no archive, but nobody looks", 7200)
    assert [one["timestamp"] for one, _ in LogReader([old, path], now_s - 60)] == [stamp]


def test_an_archive_that_ends_in_the_middle_gives_what_it_has(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = configured(tool)
    many = b"".join(entry(n % 3600, request_id=str(n * 7919 % 10007)) for n in range(5000))
    torn = put(path.with_name("access.log.1.gz"), gzip.compress(many)[:-2000], 10)
    none = put(path.with_name("access.log.2.gz"), b"plain text\n", 20)
    put(path, entry(1))
    found = sum(1 for _ in LogReader([none, torn, path]))
    assert 1000 < found < 5001
    said = capsys.readouterr().err
    assert str(torn) in said and str(none) in said


def test_a_file_that_went_away_is_told(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = configured(tool)
    assert list(LogReader([path])) == []
    assert "is not there any more" in capsys.readouterr().err
