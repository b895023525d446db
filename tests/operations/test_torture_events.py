"""The ordeal of the event path: its judge, its power cut, and twenty cycles of it on the real programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from feature_repo.contracts.packing import SessionState
from infra.bench.events import ingest as event_ingest
from infra.bench.events import torture
from infra.bench.events.ingest import free_port, lasting_port
from infra.bench.events.ledger import Findings, Ledger
from infra.bench.events.power import Disk, compiler
from infra.bench.events.torture import torture_events
from infra.bench.events.torture_decisions import Decisions
from infra.bench.events.torture_metrics import Metrics
from infra.local.redis_server import find_server, server_command

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")


def event(number: int, user: str = "u1") -> dict[str, Any]:
    return {
        "event_id": f"e{number}", "event_type": "view_item", "user_id": user, "item_id": f"i{number}",
        "timestamp": f"2024-03-08T12:00:{number:02d}Z",
    }  # fmt: skip


def replayed(*numbers: int) -> SessionState:
    """What a consumer that did its work would have stored for u1."""
    ledger = Ledger()
    for number in numbers:
        ledger.send(event(number))
    return ledger.expected_states([f"e{number}" for number in numbers])["u:u1"]


class TestLedger:
    @pytest.fixture
    def ledger(self) -> Ledger:
        """e1 and e2 are acknowledged, e3 was sent and nobody answered."""
        ledger = Ledger()
        for number in (1, 2, 3):
            ledger.send(event(number))
        ledger.note("e1", "accepted")
        ledger.note("e2", "accepted")
        ledger.note("e2", "duplicate")
        return ledger

    def judge(self, ledger: Ledger, deliveries: list[tuple[str, str, int]], applied: int, *numbers: int) -> Any:
        return ledger.judge(deliveries=deliveries, applied=applied, states={"u:u1": replayed(*numbers)})

    def test_all_is_well(self, ledger: Ledger) -> None:
        # e2 was delivered twice, at two positions: that is a duplicate, not an event counted twice.
        deliveries = [("e1", "s", 1), ("e2", "s", 2), ("e2", "s", 3)]
        assert self.judge(ledger, deliveries, 2, 1, 2).is_clean()

    def test_an_event_that_nobody_was_promised_may_be_there_or_not(self, ledger: Ledger) -> None:
        assert self.judge(ledger, [("e1", "s", 1), ("e2", "s", 2), ("e3", "s", 3)], 3, 1, 2, 3).is_clean()

    def test_a_lost_event(self, ledger: Ledger) -> None:
        found = self.judge(ledger, [("e1", "s", 1)], 1, 1)
        assert (found.lost, found.events_lost, found.is_clean()) == ({"e2"}, 1, False)

    def test_an_effect_that_is_missing_is_a_loss(self, ledger: Ledger) -> None:
        found = self.judge(ledger, [("e1", "s", 1), ("e2", "s", 2)], 1, 1)
        assert (found.events_lost, found.wrong_sessions) == (1, ["u:u1"])

    def test_one_delivery_archived_twice(self, ledger: Ledger) -> None:
        found = self.judge(ledger, [("e1", "s", 1), ("e1", "s", 1), ("e2", "s", 2)], 2, 1, 2)
        assert (found.twice, found.events_counted_twice) == ({"e1"}, 1)

    def test_one_event_applied_twice(self, ledger: Ledger) -> None:
        found = self.judge(ledger, [("e1", "s", 1), ("e2", "s", 2)], 3, 1, 2)
        assert (found.events_counted_twice, found.is_clean()) == (1, False)

    def test_one_id_accepted_twice(self, ledger: Ledger) -> None:
        ledger.note("e1", "accepted")
        found = self.judge(ledger, [("e1", "s", 1), ("e1", "s", 3), ("e2", "s", 2)], 2, 1, 2)
        assert (found.twice, found.is_clean()) == ({"e1"}, False)

    def test_an_event_that_nobody_sent(self, ledger: Ledger) -> None:
        found = self.judge(ledger, [("e1", "s", 1), ("e2", "s", 2), ("e9", "s", 9)], 3, 1, 2)
        assert (found.strangers, found.is_clean()) == ({"e9"}, False)


class TestDecisions:
    @pytest.fixture
    def decisions(self) -> Decisions:
        decisions = Decisions(SimpleNamespace())  # type: ignore[arg-type]
        decisions.promised = {"r1", "r2"}
        return decisions

    def judge(self, decisions: Decisions, files: set[str], table: list[str]) -> Findings:
        found = Findings()
        decisions.judge(found, files, table)
        return found

    def test_it_may_lie_in_a_file_in_the_table_or_in_both(self, decisions: Decisions) -> None:
        assert self.judge(decisions, {"r1", "r3"}, ["r2", "r3"]).is_clean()

    def test_a_promised_one_that_is_nowhere_is_lost(self, decisions: Decisions) -> None:
        assert self.judge(decisions, {"r3"}, ["r2"]).lost == {"decision r1"}

    def test_what_was_once_found_is_never_to_go(self, decisions: Decisions) -> None:
        assert self.judge(decisions, {"r1", "r3"}, ["r2"]).is_clean()
        assert self.judge(decisions, {"r1"}, ["r2"]).lost == {"decision r3"}

    def test_twice_in_the_table(self, decisions: Decisions) -> None:
        assert self.judge(decisions, {"r1"}, ["r2", "r2"]).twice == {"decision r2"}


class TestMetrics:
    """A day: three answers, three places of them seen, one clicked."""

    FIRST, NEXT = date(2022, 1, 1), date(2022, 1, 2)
    SEEN = (("r20220101-0", "i1"), ("r20220101-0", "i2"), ("r20220101-1", "i1"))
    COUNTED = ((FIRST, 1, 3, 2, 0), (FIRST, 2, 3, 1, 1))

    def judge(self, seen: Any, counted: Any, *, acknowledged: int = 1, tried: int = 1) -> Findings:
        metrics = Metrics(SimpleNamespace(), cycles=4)  # type: ignore[arg-type]
        metrics.acknowledged = {self.FIRST, self.NEXT} if acknowledged == 2 else {self.FIRST} if acknowledged else set()
        metrics.tried = {self.FIRST, self.NEXT} if tried == 2 else {self.FIRST}
        found = Findings()
        metrics.judge(found, seen, counted)
        return found

    def test_all_is_well(self) -> None:
        assert self.judge(self.SEEN, self.COUNTED).is_clean()
        assert self.judge((), (), acknowledged=0).is_clean()
        assert self.judge(self.SEEN, (), acknowledged=0).is_clean()  # between its two commits

    def test_a_day_that_was_said_to_be_done(self) -> None:
        assert self.judge(self.SEEN[1:], self.COUNTED).lost == {"impression r20220101-0 i1"}
        assert self.judge(self.SEEN, self.COUNTED[:1]).lost == {"metrics of 2022-01-01"}
        found = self.judge(self.SEEN, self.COUNTED, acknowledged=2, tried=2)
        assert found.lost == {"metrics of 2022-01-02", *(f"impression r20220102-{n}" for n in ("0 i1", "0 i2", "1 i1"))}

    def test_counted_twice(self) -> None:
        assert self.judge((*self.SEEN, self.SEEN[0]), self.COUNTED).twice == {"impression r20220101-0 i1"}
        assert self.judge(self.SEEN, (*self.COUNTED, self.COUNTED[0])).lost == {"metrics of 2022-01-01"}

    def test_what_nobody_asked_for(self) -> None:
        found = self.judge((*self.SEEN, ("r20220102-0", "i1")), (*self.COUNTED, (self.NEXT, 1, 3, 0, 0)))
        assert found.strangers == {"impression r20220102-0 i1", "metrics of 2022-01-02"}


@pytest.mark.parametrize(("control", "cycles"), [("everysec", 3), ("no marks", 2)])
def test_a_control_goes_on_until_its_own_harm_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: Any, cycles: int
) -> None:
    """What was lost and sent again counts twice: that is no proof of a loss."""
    harm = [Findings(), Findings(twice={"e1"}), Findings(lost={"e2"}, twice={"e1"}), Findings()]

    class Weakened:
        ledger, installation = Ledger(), SimpleNamespace(kill_everything=lambda: None)

        def __init__(self, *_: Any, **__: Any) -> None:
            """There is nothing to start."""

        def begin(self) -> None:
            """Nor here."""

        async def cycle(self, number: int) -> Findings:
            return harm[number]

    monkeypatch.setattr(torture, "Torture", Weakened)
    found = torture._control(tmp_path, {}, 1, control, lambda _: None)
    assert (found["caught"], found["cycles"]) == (True, cycles)


@needs_compiler
def test_a_port_that_outlives_its_server_is_free_and_none_that_connections_get(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lasting_port() < 32_768
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = lasting_port()
        drawn = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(event_ingest, "secrets", SimpleNamespace(choice=lambda _: next(drawn)))
        assert lasting_port() == free


class TestPowerCut:
    PROGRAM = """
import os
def put(name, data, sync):
    handle = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(handle, data)
    if sync: os.fsync(handle)
    os.close(handle)
def sync_folder(name):
    handle = os.open(name, os.O_RDONLY); os.fsync(handle); os.close(handle)
put('old', b'-more', False)            # was there; what came now was never synced
put('half', b'synced', True); put('half', b'-lost', False)
put('named', b'synced', True)        # its name is synced below
os.mkdir('kept'); put('kept/a', b'synced', True); put('kept/b', b'', False)
put('kept/new', b'new', True)
sync_folder('kept'); sync_folder('.')
os.mkdir('draft'); put('draft/d', b'whole', True); sync_folder('draft'); put('draft/e', b'', True)
os.rename('draft', 'final'); sync_folder('.')  # what a folder was synced with stays in it
put('late', b'synced', True)           # after its folder was synced
os.rename('kept/new', 'kept/a')        # either is legal; here the new one stays
"""

    def run(self, home: Path, disk: Disk, program: str) -> None:
        variables = {**os.environ, **disk.variables()}
        subprocess.run([sys.executable, "-c", program], cwd=home, env=variables, check=True)

    def test_only_what_was_synced_survives(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "old").write_bytes(b"old")
        disk = Disk(home, tmp_path / "workshop")
        disk.settled()
        self.run(home, disk, self.PROGRAM)
        report = disk.cut()
        found = {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
        assert found == {"old": b"old", "half": b"synced", "named": b"synced", "kept/a": b"new", "kept/b": b"",
                         "final/d": b"whole"}  # fmt: skip
        assert report == (2, 2, len(b"-more") + len(b"-lost") + len(b"synced"))

    def test_a_name_whose_folder_was_never_synced_is_gone(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        disk = Disk(home, tmp_path / "workshop")
        disk.settled()
        self.run(home, disk, "import os; h = os.open('a', os.O_CREAT | os.O_WRONLY); os.write(h, b'x'); os.fsync(h)")
        assert disk.cut() == (1, 0, 1)
        assert list(home.iterdir()) == []

    def test_a_full_disk_refuses_and_recovers(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        disk = Disk(home, tmp_path / "workshop")
        program = """
import errno, os, sys
try:
    os.write(os.open('a', os.O_CREAT | os.O_WRONLY), b'x')
except OSError as error:
    sys.exit(0 if error.errno == errno.ENOSPC else 2)
sys.exit(1)
"""
        codes = []
        for is_full in (True, False):
            disk.fill(is_full=is_full)
            variables = {**os.environ, **disk.variables()}
            codes.append(subprocess.run([sys.executable, "-c", program], cwd=home, env=variables).returncode)
        assert codes == [0, 1]

    def test_a_slow_disk_lets_syncs_wait(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        disk = Disk(home, tmp_path / "workshop")
        program = """
import os, time
began, handle = time.monotonic(), os.open('a', os.O_CREAT | os.O_WRONLY)
os.fsync(handle); os.fdatasync(handle)
print(time.monotonic() - began)
"""
        took = []
        for seconds in (0.5, 0.0):
            disk.slow_down(seconds)
            variables = {**os.environ, **disk.variables()}
            command = [sys.executable, "-c", program]
            took.append(float(subprocess.run(command, cwd=home, env=variables, check=True, capture_output=True).stdout))
        assert took[0] >= 1.0
        assert took[1] < 1.0

    @pytest.mark.redis
    def test_what_a_server_has_rewritten_survives_although_it_writes_its_title_over_its_environment(
        self, tmp_path: Path
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        disk = Disk(home, tmp_path / "workshop")
        binary, port = find_server(os.environ), free_port()
        command = server_command(binary, "log", port=port, folder=home / "log", pid_file=home / "log" / "redis.pid")
        with subprocess.Popen(command, env={**os.environ, **disk.variables()}, stdout=subprocess.DEVNULL) as server:
            with redis.Redis(port=port, retry=Retry(ConstantBackoff(0.05), 100)) as client:
                client.set("a", "1")
                disk.settled()
                client.set("a", "2")
                client.bgrewriteaof()
                while (
                    client.info("persistence")["aof_rewrites"] < 1
                    or client.info("persistence")["aof_rewrite_in_progress"]
                ):
                    time.sleep(0.01)
                client.set("b", "3")
            server.kill()
        assert disk.cut().bytes_gone == 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            with redis.Redis(port=port, decode_responses=True, retry=Retry(ConstantBackoff(0.05), 100)) as client:
                assert client.mget("a", "b") == ["2", "3"]
            server.kill()


@pytest.mark.redis
@needs_compiler
def test_twenty_cycles_and_both_controls(tmp_path: Path) -> None:
    said: list[str] = []
    report = torture_events(tmp_path / "home", os.environ, cycles=20, seed=7, say=said.append)
    assert report["clean"], said
    assert report["acknowledged"] == report["events"] >= 200
    assert report["harm"]["power cut"] == 7  # the second and the fourth of each six cycles
    assert (report["decisions"], report["metric_days"]) == (200, 10)  # ten at the end of a cycle; every second one
    assert {name: control["caught"] for name, control in report["controls"].items()} == {
        "everysec": True,
        "no marks": True,
    }, said
