"""How much of its memory a worker uses, from files of the kernel: both versions of control groups, and none."""

import os
from pathlib import Path

import pytest

from apigw.supervisor.memory import MemoryUsage

MIB = 1 << 20


def write(root: Path, **files: object) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """100 MiB resident, 300 MiB available; no control group."""
    pages = 100 * MIB // os.sysconf("SC_PAGE_SIZE")
    meminfo = f"MemTotal: 999999 kB\nMemFree: 1 kB\nMemAvailable: {300 * 1024} kB\n"
    write(tmp_path, **{"proc/self/statm": f"9999999 {pages} 1 1 0 1 0", "proc/meminfo": meminfo})
    return tmp_path


def v2(root: Path, folder: str, limit: object, used: int, inactive: int = 0) -> None:
    where = f"sys/fs/cgroup{folder}"
    stat = f"anon 1\ninactive_file {inactive}\nactive_file 7\n"
    write(root, **{f"{where}/memory.max": limit, f"{where}/memory.current": used, f"{where}/memory.stat": stat})


def test_without_a_limit_it_is_the_workers_share_of_what_it_could_have(machine: Path) -> None:
    assert MemoryUsage(machine).percent() == pytest.approx(25.0)
    write(machine, **{"proc/self/cgroup": "0::/system.slice/apigw.service\n"})
    v2(machine, "/system.slice/apigw.service", "max\n", 90)
    assert MemoryUsage(machine).percent() == pytest.approx(25.0)


def test_a_groups_limit_counts_without_the_files_that_can_be_dropped(machine: Path) -> None:
    """A log that was written fills a group to its limit with pages that nobody needs."""
    write(machine, **{"proc/self/cgroup": "0::/system.slice/apigw.service\n"})
    v2(machine, "/system.slice/apigw.service", 1000 * MIB, 950 * MIB, inactive=550 * MIB)
    assert MemoryUsage(machine).percent() == pytest.approx(40.0)


def test_of_several_groups_the_fullest_counts(machine: Path) -> None:
    write(machine, **{"proc/self/cgroup": "0::/pod/container\n"})
    v2(machine, "/pod/container", 1000, 100)
    v2(machine, "/pod", 2000, 1000)
    v2(machine, "", "max", 5)
    assert MemoryUsage(machine).percent() == pytest.approx(50.0)


def test_in_a_container_the_mount_itself_is_the_group(machine: Path) -> None:
    write(machine, **{"proc/self/cgroup": "0::/kubepods/on/the/host\n"})
    v2(machine, "", 1000, 600)
    assert MemoryUsage(machine).percent() == pytest.approx(60.0)


def test_version_1_has_other_names_and_a_huge_number_for_no_limit(machine: Path) -> None:
    write(machine, **{"proc/self/cgroup": "5:devices:/\n4:memory:/box\n0::/\n"})
    for folder, limit in (("", 9223372036854771712), ("/box", 1000)):
        where = f"sys/fs/cgroup/memory{folder}"
        files = {"limit_in_bytes": limit, "usage_in_bytes": 700, "stat": "cache 1\ntotal_inactive_file 200\n"}
        write(machine, **{f"{where}/memory.{name}": value for name, value in files.items()})
    assert MemoryUsage(machine).percent() == pytest.approx(50.0)


def test_a_kernel_that_does_not_say_is_an_error_that_the_caller_expects(machine: Path) -> None:
    write(machine, **{"proc/meminfo": "MemTotal: 1 kB\n"})
    with pytest.raises(ValueError, match="MemAvailable"):
        MemoryUsage(machine).percent()


def test_this_machine_says_something() -> None:
    assert 0.0 < MemoryUsage().percent() < 100.0
