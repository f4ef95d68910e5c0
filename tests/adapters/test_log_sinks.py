"""Lines reach files, FIFOs and pipes; whatever happens there, write() returns at once and every line is counted."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from twisted.logger import globalLogPublisher

from apigw.adapters.log_sinks import FileSink, StdoutSink, open_sinks
from apigw.config.model import AccessLog, Sink

LINES = [json.dumps({"n": n, "pad": "x" * 300}).encode() + b"\n" for n in range(3000)]


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    """Wait for something that the sink's thread does; it has no event to wait for."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, what
        pause.wait(0.01)


def numbers(data: bytes) -> list[int]:
    """The n of each line, all of which must be whole."""
    assert not data or data.endswith(b"\n")
    return [json.loads(line)["n"] for line in data.splitlines()]


def started(path: Path, buffer_entries: int = 100_000) -> FileSink:
    sink = FileSink(path, buffer_entries)
    sink.start()
    return sink


def test_lines_arrive_in_order_and_are_counted(tmp_path: Path) -> None:
    sink = started(tmp_path / "log")
    for line in LINES:
        sink.write(line)
    assert sink.close(5.0)
    assert numbers((tmp_path / "log").read_bytes()) == list(range(3000))
    assert (sink.written(), sink.dropped(), sink.errors()) == (3000, 0, 0)


def test_a_line_is_in_the_file_soon_without_a_close(tmp_path: Path) -> None:
    sink = started(tmp_path / "log")
    eventually((tmp_path / "log").exists, "the file is made at the start")
    begun = time.monotonic()
    sink.write(LINES[0])
    eventually(lambda: (tmp_path / "log").stat().st_size > 0, "flushed")
    assert time.monotonic() - begun < 0.5  # 100 ms and a busy machine
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0  # not for everybody
    sink.close(1.0)


def test_a_full_buffer_drops_the_newest_and_counts_them(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "log", 10)
    for line in LINES[:25]:
        sink.write(line)
    assert sink.dropped() == 15
    sink.start()
    assert sink.close(5.0)
    assert numbers((tmp_path / "log").read_bytes()) == list(range(10))
    sink.write(LINES[0])  # after the end
    assert (sink.written(), sink.dropped()) == (10, 16)


def test_a_small_buffer_takes_a_long_run_of_bursts_without_a_drop(tmp_path: Path) -> None:
    sink = started(tmp_path / "log", buffer_entries=200)
    for begin in range(0, 3000, 150):
        for line in LINES[begin : begin + 150]:
            sink.write(line)
        eventually(lambda begin=begin: sink.written() == begin + 150, "drained")  # type: ignore[misc]
    assert sink.close(5.0)
    assert sink.dropped() == 0


def test_after_rename_and_reopen_the_new_file_gets_the_entries_and_none_is_lost(tmp_path: Path) -> None:
    sink = started(tmp_path / "log")
    for begin in range(0, 3000, 300):
        for line in LINES[begin : begin + 150]:
            sink.write(line)
        eventually(lambda: (tmp_path / "log").exists(), "reopened")
        (tmp_path / "log").rename(tmp_path / f"log.{begin:04}")
        for line in LINES[begin + 150 : begin + 300]:
            sink.write(line)
        sink.reopen()
    sink.write(LINES[0])
    assert sink.close(5.0)
    parts = sorted(tmp_path.glob("log.*"))
    data = b"".join(part.read_bytes() for part in parts) + (tmp_path / "log").read_bytes()
    assert numbers(data) == [*range(3000), 0]
    assert sink.dropped() == 0


def test_without_reopen_a_renamed_file_keeps_getting_entries(tmp_path: Path) -> None:
    sink = started(tmp_path / "log")
    eventually((tmp_path / "log").exists, "opened")
    (tmp_path / "log").rename(tmp_path / "log.1")
    sink.write(LINES[0])
    assert sink.close(5.0)
    assert numbers((tmp_path / "log.1").read_bytes()) == [0]


def test_a_deleted_directory_holds_entries_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    sink = started(folder / "log")
    sink.write(LINES[0])
    eventually(lambda: sink.written() == 1, "written")
    (folder / "log").unlink()
    folder.rmdir()
    sink.write(LINES[1])
    eventually(lambda: sink.errors() > 0, "the loss is noticed")
    folder.mkdir()
    assert sink.close(5.0)
    assert numbers((folder / "log").read_bytes()) == [1]
    assert (sink.written(), sink.dropped()) == (2, 0)


def test_a_fifo_without_reader_holds_entries_and_a_reader_gets_them(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = started(fifo)
    for line in LINES[:500]:
        sink.write(line)
    eventually(lambda: sink.errors() > 0, "no reader")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    assert sink.close(5.0)
    reader.join(5.0)
    assert numbers(got[0]) == list(range(500))


def test_a_fifo_whose_reader_reads_slowly_gets_every_line_whole(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = started(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for line in LINES:  # 1 MB; the pipe holds 64 KiB
        sink.write(line)
    got = bytearray()

    def read_some() -> bool:
        try:
            got.extend(os.read(reader, 30_000))
        except BlockingIOError:
            pass
        return got.count(b"\n") == 3000

    eventually(read_some, "all lines", 15.0)
    os.close(reader)
    assert sink.close(5.0)
    assert numbers(bytes(got)) == list(range(3000))


def test_a_fifo_whose_reader_never_reads_bounds_the_close(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = started(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for line in LINES:
        sink.write(line)
    begun = time.monotonic()
    assert not sink.close(0.5)
    assert time.monotonic() - begun < 1.5
    assert sink.written() + sink.dropped() == 3000
    assert sink.dropped() > 1000
    os.close(reader)


def test_a_new_fifo_reader_finds_what_the_first_left_and_all_that_came_since(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = started(fifo)
    first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for line in LINES:
        sink.write(line)
    eventually(lambda: sink.written() > 0, "some written")
    os.close(first)  # nothing read, and a line cut at the pipe's end
    eventually(lambda: sink.errors() > 0, "the reader is gone")
    second = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    got = bytearray()

    def read_some() -> bool:
        try:
            got.extend(os.read(second, 65_536))
        except BlockingIOError:
            pass
        return sink.written() == 3000 and got.endswith(LINES[-1])

    eventually(read_some, "the rest", 15.0)
    os.close(second)
    sink.close(1.0)
    assert numbers(bytes(got)) == list(range(3000))


def test_dev_full_is_an_error_that_hurts_nobody() -> None:
    sink = started(Path("/dev/full"))
    sink.write(LINES[0])
    eventually(lambda: sink.errors() >= 2, "tried again")
    assert not sink.close(0.2)
    assert (sink.written(), sink.dropped()) == (0, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_delays_lines_and_tears_none(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(32 * 1024))
    sink = started(small_disk / "log")
    for line in LINES[:150]:  # 47 KB into 32
        sink.write(line)
    eventually(lambda: sink.errors() > 0, "full")
    assert not (small_disk / "log").read_bytes().endswith(b"\n")  # the disk was full in the middle of a line
    (small_disk / "ballast").unlink()
    assert sink.close(5.0)
    assert numbers((small_disk / "log").read_bytes()) == list(range(150))
    assert (sink.written(), sink.dropped()) == (150, 0)


def test_a_line_torn_by_a_full_disk_is_ended_and_repeated_when_others_wrote_behind_it(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(32 * 1024))
    sink = started(small_disk / "log")
    for line in LINES[:150]:
        sink.write(line)
    eventually(lambda: sink.errors() >= 3, "full for a while: the next try is 0.4 s away")
    with open(small_disk / "ballast", "r+b") as ballast:
        ballast.truncate(0)
    with open(small_disk / "log", "ab") as other:
        other.write(b"<other>")
    assert sink.close(5.0)
    lines = (small_disk / "log").read_bytes().splitlines(keepends=True)
    torn = [line for line in lines if line.endswith(b"<other>\n")]
    assert len(torn) == 1
    lines.remove(torn[0])
    assert numbers(b"".join(lines)) == list(range(150))
    assert sink.written() == 150


def test_a_file_that_a_dead_process_left_in_the_middle_of_a_line_is_mended_first(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(LINES[0] + b'{"n": 1, "pa')
    sink = started(tmp_path / "log")
    sink.write(LINES[2])
    assert sink.close(5.0)
    assert (tmp_path / "log").read_bytes() == LINES[0] + b'{"n": 1, "pa\n' + LINES[2]


def test_a_failure_is_reported_once_and_so_is_its_end(tmp_path: Path) -> None:
    events: list[str] = []

    def observe(event: dict[str, object]) -> None:
        if event.get("log_namespace") == "apigw.adapters.log_sinks":
            events.append(str(event["log_level"].name))  # type: ignore[attr-defined]

    globalLogPublisher.addObserver(observe)
    try:
        sink = started(tmp_path / "missing" / "log")
        eventually(lambda: sink.errors() >= 3, "tried again and again")
        (tmp_path / "missing").mkdir()
        eventually((tmp_path / "missing" / "log").exists, "opened")
        assert sink.close(2.0)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert events == ["error", "info"]


def test_standard_output_gets_the_lines_and_stays_open() -> None:
    read, write = os.pipe()
    sink = StdoutSink(1000, fd=write)
    sink.start()
    sink.reopen()
    for line in LINES[:50]:
        sink.write(line)
    assert sink.close(5.0)
    os.write(write, b"")  # still ours
    os.close(write)
    with open(read, "rb") as pipe:
        assert numbers(pipe.read()) == list(range(50))


def test_a_stdout_that_nobody_reads_bounds_the_close_and_accounts_for_every_line() -> None:
    read, write = os.pipe()
    sink = StdoutSink(100_000, fd=write)
    sink.start()
    for line in LINES:  # 1 MB into a pipe of 64 KiB: the thread blocks
        sink.write(line)
    begun = time.monotonic()
    assert not sink.close(0.5)
    assert time.monotonic() - begun < 1.5
    os.close(read)  # lets the thread end
    os.close(write)
    assert sink.written() + sink.dropped() >= 3000


def test_write_never_waits_while_the_disk_does(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = started(fifo, buffer_entries=500)
    begun = time.monotonic()
    for _ in range(10):
        for line in LINES:
            sink.write(line)
    assert time.monotonic() - begun < 1.0  # 30,000 lines at 30 us would be slow already
    assert sink.dropped() >= 29_500 - 1000
    sink.close(0.1)
    assert sink.dropped() == 30_000


def test_the_configurations_sinks_are_made_by_type_and_nothing_is_opened(tmp_path: Path) -> None:
    section = AccessLog(sinks=(Sink("file", tmp_path / "log"), Sink("kafka"), Sink("stdout")), buffer_entries=2)
    sinks = open_sinks(section)
    assert [type(sink) for sink in sinks] == [FileSink, StdoutSink]
    assert not (tmp_path / "log").exists()
    for sink in sinks:
        for line in LINES[:3]:
            sink.write(line)
        assert sink.dropped() == 1
