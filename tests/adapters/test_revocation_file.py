"""Revocations on disk: what a restart finds, when it is written, and what becomes of a bad file."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from apigw.adapters.revocation_file import (
    ENTRIES_A_SECOND,
    FILE_NAME,
    LAST_SAVE_S,
    MAX_FILE_BYTES,
    SAVE_S,
    RevocationFile,
    read,
    write,
)
from apigw.adapters.revocation_list import RevocationList
from apigw.core.revocations import Revocation, RevokedToken, RevokedUser
from apigw.net import threads
from tests.adapters.api_key_world import Store
from tests.servers import turns, until

loop: Any = reactor
NOW_S = 1_800_000_000.0
LATER_S = NOW_S + 3600.0
SOME = [RevokedToken('a"\n', LATER_S), RevokedToken("ü", LATER_S), RevokedUser("u:1", NOW_S, LATER_S)]


class Run:
    """One run of a gateway: a list that nobody fills but the file and the test."""

    def __init__(self, folder: Path, last_save_s: float = LAST_SAVE_S) -> None:
        self.list = RevocationList(loop, Store(), lambda: NOW_S)
        self.file = RevocationFile(loop, folder, self.list, last_save_s)

    def start(self) -> "Run":
        self.file.startService()
        return self

    def add(self, *revocations: Revocation) -> None:
        self.list._add(revocations)

    async def stop(self) -> None:
        await self.file.stopService()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert [path.name for path in tmp_path.glob(".*")] == [], "a file that was not finished"


def found(folder: Path) -> set[Revocation | None]:
    return set(read(folder / FILE_NAME))


@pytest_twisted.ensureDeferred
async def test_the_next_run_begins_with_what_the_last_one_knew(folder: Path) -> None:
    """Before anything else: a worker that finds no Redis still refuses it. Nobody else may read it."""
    first = Run(folder).start()
    first.add(*SOME)
    await first.stop()
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    second = Run(folder).start()
    assert second.list.known.kept() == first.list.known.kept()
    assert not second.list.complete, "the file is no answer of Redis"
    second.add(*SOME)
    written = (folder / FILE_NAME).stat().st_mtime_ns
    await second.stop()
    assert (folder / FILE_NAME).stat().st_mtime_ns == written, "there was no news"


@pytest_twisted.ensureDeferred
async def test_changes_are_written_while_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, for a process that is killed: each file that anybody ever sees is complete."""
    run = Run(folder).start()
    run.add(SOME[0])
    saved = run.file.save()
    assert saved is not None
    await saved
    assert found(folder) == {SOME[0]} and run.file.save() is None
    run.add(*SOME)
    await run.file.save()  # type: ignore[misc]
    assert found(folder) == set(SOME)
    await run.stop()


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_does_not_hold_the_end(folder: Path) -> None:
    """Nor the loop, in which others stop. Here it is a pipe that nobody reads, in the place of the new file."""
    run = Run(folder, last_save_s=0.2).start()
    run.add(*SOME)
    pipe = folder / f".{FILE_NAME}.{os.getpid()}.{await run.file._threads.run(get_ident)}"
    os.mkfifo(pipe)
    began_s = loop.seconds()
    stopping = run.file.stopService()
    assert not stopping.called and loop.seconds() - began_s < 0.1
    await stopping
    assert loop.seconds() - began_s < 0.2 + threads._STOP_S + 0.5
    assert not (folder / FILE_NAME).exists()
    with pipe.open("rb"):
        await until(lambda: not pipe.exists(), loop)  # the thread goes on and tidies up


@pytest_twisted.ensureDeferred
async def test_it_is_written_by_itself(folder: Path) -> None:
    run = Run(folder).start()
    run.add(*SOME)
    await until(lambda: (folder / FILE_NAME).exists(), loop, SAVE_S + 3.0)
    await run.stop()
    assert found(folder) == set(SOME)


def test_a_long_list_is_written_less_often(folder: Path) -> None:
    run = Run(folder)
    assert run.file.gap_s() == SAVE_S
    run.add(*(RevokedToken(str(number), LATER_S) for number in range(20_000)))
    assert run.file.gap_s() == 20_000 / ENTRIES_A_SECOND


@pytest_twisted.ensureDeferred
async def test_a_folder_that_takes_no_file_is_named_and_harms_nothing(folder: Path) -> None:
    run = Run(folder / "none").start()
    assert run.file.error is None, "no file is no error: there was no run before"
    run.add(*SOME)
    with pytest.raises(Exception, match="No such file"):
        await run.file.save()  # type: ignore[misc]
    assert "No such file" in str(run.file.error)
    (folder / "none").mkdir()
    await run.file.save()  # type: ignore[misc]
    assert run.file.error is None and found(folder / "none") == set(SOME)
    await run.stop()


@pytest_twisted.ensureDeferred
async def test_of_a_damaged_file_the_good_lines_count(folder: Path) -> None:
    write(folder / FILE_NAME, ({"a": LATER_S}, {"u": (NOW_S, LATER_S)}))
    text = (folder / FILE_NAME).read_bytes()
    (folder / FILE_NAME).write_bytes(b"\xff\n" + text + b'{"jti": "b", "unt')
    run = Run(folder).start()
    assert run.list.known.counts() == {"token": 1, "user": 1}
    assert run.file.error == f"2 lines of {folder / FILE_NAME} are no revocations"
    await run.stop()


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_no_list_is_not_read(folder: Path) -> None:
    """Too large, or a folder. The gateway starts, and says so."""
    with (folder / FILE_NAME).open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    run = Run(folder).start()
    assert "larger than" in str(run.file.error) and not run.list.known.any
    await run.stop()
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).mkdir()
    run = Run(folder).start()
    run.add(*SOME)
    assert "directory" in str(run.file.error)
    await run.stop()


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_writing_a_long_list_does_not_hold_the_loop(folder: Path) -> None:
    run = Run(folder).start()
    for start in range(0, 50_000, 1000):
        run.add(*(RevokedToken(f"7f0c{number:08}", LATER_S) for number in range(start, start + 1000)))
    least_s = 1.0
    attempts = 5  # the machine is others', too
    for number in range(attempts):
        run.add(RevokedToken(f"more-{number}", LATER_S))
        saved = run.file.save()
        assert saved is not None
        late_s = []
        while not saved.called:
            due_s = loop.seconds() + 0.001
            await turns(loop, 0.001)
            late_s.append(loop.seconds() - due_s)
        if len(late_s) > 20:
            least_s = min(least_s, sorted(late_s)[len(late_s) * 9 // 10])
    assert least_s < 0.008
    await run.stop()
    assert len(found(folder)) == 50_000 + attempts


@pytest_twisted.ensureDeferred
async def test_what_a_killed_process_left_half_written_goes(folder: Path) -> None:
    """When it is old enough not to be another worker's, who is writing it now."""
    half, fresh = folder / f".{FILE_NAME}.1.2", folder / f".{FILE_NAME}.3.4"
    for path in (half, fresh):
        path.write_bytes(b"{")
    os.utime(half, (1, 1))
    run = Run(folder).start()
    assert not half.exists() and fresh.exists()
    fresh.unlink()
    await run.stop()


def test_without_a_list_there_is_no_file(folder: Path) -> None:
    assert RevocationFile.of(loop, folder, None) is None
