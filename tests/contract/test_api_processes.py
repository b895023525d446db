"""The real processes: server with two workers, consumer and archiver, on real Redis servers, stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from deltalake import DeltaTable

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import candidates_key, partition_of, pointer_key, speed_counters_key, stream_key
from feature_repo.contracts.packing import PackedCandidate, Source, pack_candidates
from feature_repo.contracts.tables import table_path
from infra.local.redis_server import RunningServer
from tests.serving_builders import Shop
from tests.waiting import wait_for

ITEMS = [f"i{number}" for number in range(12)]
SHOP = Shop(
    {item: {"title": item.upper(), "category": "A", "price": 1.0} for item in ITEMS},
    neighbours={item: [(other, 0.5) for other in ITEMS if other != item] for item in ITEMS},
    popular=[(item, 12.0 - n) for n, item in enumerate(ITEMS)],
)


class Stack:
    """Redis log and online, an API with two workers, consumer and archiver, in an empty NIGHTJAR_HOME."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = RunningServer("log", folder / "log")
        self.online = RunningServer("online", folder / "online")
        with RunningServer("online", folder / "unused") as unused:
            self.port = unused.port  # free again when the API starts
        self.url = f"http://127.0.0.1:{self.port}"
        self.variables = {
            **os.environ,
            names.HOME: str(folder / "home"),
            names.REDIS_LOG_URL: self.log.url,
            names.REDIS_ONLINE_URL: self.online.url,
            "NIGHTJAR_SERVING_ARCHIVE_SECONDS": "0.2",
            "NIGHTJAR_SERVING_LEASE_SECONDS": "1",
            "NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS": "200",  # a busy machine is no failure
            "PYTHONUNBUFFERED": "1",
        }
        self.environment = Environment.from_mapping(self.variables)
        self.version = SHOP.write(self.environment.publications)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = httpx.Client(base_url=self.url, timeout=5)

    def publish(self) -> None:
        rows = [PackedCandidate(SHOP.numbers[item], 1.0 - n / 10, Source.ALS) for n, item in enumerate(ITEMS[:6])]
        with redis.Redis.from_url(self.online.url) as client:
            client.set(candidates_key(self.version, "u1"), pack_candidates(self.version, rows))
            client.set(pointer_key(), self.version)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=self.variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.processes[name] = process
        return process

    def start_api(self) -> None:
        self.start("api", "serving", "--port", str(self.port), "--workers", "2")
        wait_for(lambda: self.listeners() == 2, "both workers listen")
        wait_for(self.is_ready, "the API is ready")

    def start_stream_processes(self) -> None:
        for name in ("consumer", "archiver"):
            self.start(name, f"serving.speed.{name}")
        for name in ("consumer", "archiver"):
            wait_for(lambda name=name: f"{name}: running" in self.output(name), f"the {name} has its role")

    def is_ready(self) -> bool:
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def listeners(self) -> int:
        """Sockets that listen on the API's port: one for each worker that has started."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[1].endswith(f":{self.port:04X}") and row[3] == "0A" for row in rows)

    def workers(self) -> list[int]:
        parent = self.processes["api"].pid
        return sorted(int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split())

    def ask(self, **question: Any) -> dict[str, Any]:
        response = self.client.post("/v1/recommendations", json=question)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def like_i0(self) -> list[str]:
        """Items like i0, asked over a new connection: any worker may answer."""
        with httpx.Client(base_url=self.url, timeout=5) as fresh:
            answer = fresh.post("/v1/similar", json={"item_id": "i0", "num_results": 12}).json()
        return [item["item_id"] for item in answer["items"]]

    def click(self, event_id: str, item: str, user: str = "u1") -> httpx.Response:
        moment = datetime.now(UTC).isoformat()
        event = {"event_id": event_id, "event_type": "view_item", "user_id": user, "item_id": item}
        return self.client.post("/v1/events", json={**event, "session_id": "s1", "timestamp": moment})

    def archived(self) -> list[str]:
        path = table_path(self.environment.lakehouse, "bronze.events")
        if not DeltaTable.is_deltatable(path):
            return []
        return sorted(DeltaTable(path).to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())

    def stop(self) -> None:
        self.client.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        for server in (self.log, self.online):
            server.stop()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    stack.stop()


@pytest.mark.redis
def test_a_click_travels_to_the_next_slate_and_to_the_archive_whatever_dies(stack: Stack) -> None:
    stack.publish()
    stack.start_api()
    stack.start_stream_processes()
    before = stack.ask(user_id="u1", session_id="s1", num_results=3)
    assert [item["item_id"] for item in before["items"]] == ["i0", "i1", "i2"]

    # HTTP -> stream -> consumer -> Redis -> answer
    assert stack.click("e1", "i0").json()["results"][0]["status"] == "accepted"
    started = time.monotonic()
    wait_for(
        lambda: "i0" not in [i["item_id"] for i in stack.ask(user_id="u1", session_id="s1")["items"]],
        "the clicked item leaves the slate",
    )
    assert time.monotonic() - started < 2.0  # milliseconds, on a machine that has nothing else to do
    wait_for(lambda: stack.archived() == ["e1"], "the click is archived")

    # Both stream processes die hard and are started again: nothing is lost, nothing is done twice.
    for name in ("consumer", "archiver"):
        stack.processes[name].kill()
        stack.processes[name].wait()
    assert stack.click("e2", "i1").status_code == 202
    assert stack.click("e2", "i1").json()["results"][0]["status"] == "duplicate"
    for name in ("consumer", "archiver"):
        stack.start(name, f"serving.speed.{name}")
    wait_for(lambda: stack.archived() == ["e1", "e2", "e2"], "every delivery is archived once")

    def seen() -> list[str]:
        shown = stack.ask(user_id="u1", session_id="s1", explain=True, num_results=12)
        return [event["item_id"] for event in shown["trace"]["session"]]

    wait_for(lambda: len(seen()) == 2, "the consumer has both clicks")
    assert seen() == ["i0", "i1"]
    with redis.Redis.from_url(stack.log.url) as client:
        wait_for(lambda: client.xlen(stream_key(partition_of("u:u1"))) == 0, "the stream is trimmed")
    with redis.Redis.from_url(stack.online.url) as client:  # exact, although the consumer was killed in between
        assert client.hgetall(speed_counters_key()) == {b"applied": b"2", b"duplicate": b"1"}

    # A second consumer gets its share of the partitions.
    second = stack.start("second", "serving.speed.consumer")
    wait_for(lambda: "running, owns partitions" in stack.output("second"), "the second consumer has a share")
    assert second.poll() is None


@pytest.mark.redis
def test_the_server_outlives_its_stores_and_its_workers(stack: Stack) -> None:
    stack.publish()
    stack.start_api()
    personal = stack.ask(user_id="u1", num_results=3)

    # What the shop takes down is gone from every worker's answers, also from those of a worker that starts later.
    assert "i5" in stack.like_i0()
    assert stack.client.delete("/v1/items/i5").json()["results"][0]["status"] == "accepted"
    wait_for(lambda: all("i5" not in stack.like_i0() for _ in range(8)), "both workers know the change")

    # A worker dies: the other one answers, a new one comes, and no count is lost.
    first_workers = stack.workers()
    assert len(first_workers) == 2
    os.kill(first_workers[0], signal.SIGKILL)
    wait_for(lambda: len(set(stack.workers()) - set(first_workers)) == 1 and len(stack.workers()) == 2, "a new worker")
    wait_for(lambda: stack.listeners() == 2, "the new worker listens")
    for _ in range(10):
        with httpx.Client(base_url=stack.url, timeout=5) as fresh:  # a new connection each: any worker
            assert fresh.post("/v1/recommendations", json={"user_id": "u1"}).status_code == 200
        assert "i5" not in stack.like_i0()
    line = 'nightjar_api_requests_total{route="/v1/recommendations",status="200"}'
    metrics = stack.client.get("/metrics").text.splitlines()
    assert [float(text.rpartition(" ")[2]) for text in metrics if text.startswith(line)] == [11.0]
    assert "nightjar_api_worker_starts_total 3.0" in metrics

    # Redis hangs, then is gone: degraded answers, quickly; still ready. Events are refused, not lost in silence.
    stack.online.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    hanging = stack.ask(user_id="u1", num_results=3)
    assert time.monotonic() - started < 2.0
    stack.online.process.send_signal(signal.SIGCONT)
    stack.online.stop()
    gone = stack.ask(user_id="u1", num_results=3)
    for answer in (hanging, gone):
        assert (answer["fallback_level"], answer["degraded_reasons"]) == ("popular", ["online_store_unavailable"])
    assert stack.client.get("/health/ready").json()["degraded"] is True
    stack.log.stop()
    refused = stack.click("e1", "i0")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")

    # Redis comes back on its port: personal answers again, without a restart of ours.
    stack.online = RunningServer("online", stack.folder / "online", port=stack.online.port)
    stack.publish()
    wait_for(lambda: stack.ask(user_id="u1", num_results=3)["items"] == personal["items"], "personal answers again")

    # A clean end: exit code 0, and no worker left.
    workers = stack.workers()
    stack.processes["api"].terminate()
    assert stack.processes["api"].wait(10) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.redis
def test_every_decision_is_archived_once_whoever_is_killed(stack: Stack) -> None:
    stack.publish()
    stack.start_api()
    answered: list[str] = []

    def ask(count: int) -> None:
        for _ in range(count):
            with httpx.Client(base_url=stack.url, timeout=5) as fresh:  # a new connection each: any worker
                answered.append(fresh.post("/v1/recommendations", json={"user_id": "u1"}).json()["recommendation_id"])

    def archived() -> list[str]:
        path = table_path(stack.environment.lakehouse, "silver.decisions")
        if not DeltaTable.is_deltatable(path):
            return []
        return sorted(DeltaTable(path).to_pyarrow_table(columns=["recommendation_id"])["recommendation_id"].to_pylist())

    def logged() -> float:
        line = 'nightjar_api_decisions_total{outcome="logged"}'
        lines = [text for text in stack.client.get("/metrics").text.splitlines() if text.startswith(line)]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    ask(20)
    wait_for(lambda: logged() == 20, "all decisions are on disk")
    os.kill(stack.workers()[0], signal.SIGKILL)
    stack.start_stream_processes()
    wait_for(lambda: archived() == sorted(answered), "the archiver has all, those of the dead worker too")
    stack.processes["archiver"].kill()
    stack.processes["archiver"].wait()
    wait_for(lambda: stack.listeners() == 2, "the new worker listens")
    ask(20)
    stack.processes["api"].terminate()
    assert stack.processes["api"].wait(15) == 0
    stack.start("archiver", "serving.speed.archiver")
    folder = Path(stack.environment.decisions)
    wait_for(lambda: not list(folder.iterdir()), "no file is left")
    assert archived() == sorted(answered)
    assert len(set(answered)) == 40


@pytest.mark.redis
@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_the_threads_of_the_engine_that_writes_the_archive_stand_back(stack: Stack) -> None:
    stack.start("archiver", "serving.speed.archiver")
    tasks = Path(f"/proc/{stack.processes['archiver'].pid}/task")

    def niceness_of_engine() -> set[int]:
        found = [task for task in tasks.iterdir() if (task / "comm").read_text().startswith("tokio")]
        return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in found}

    made = Path(table_path(stack.environment.lakehouse, "silver.decisions"))
    wait_for(lambda: DeltaTable.is_deltatable(str(made)), "the last table is made")
    assert niceness_of_engine() == {os.getpriority(os.PRIO_PROCESS, 0) + 10}


@pytest.mark.redis
def test_workers_end_with_a_supervisor_that_is_killed(stack: Stack) -> None:
    stack.publish()
    stack.start_api()
    workers = stack.workers()
    stack.processes["api"].kill()
    stack.processes["api"].wait()
    assert len(workers) == 2
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers are gone")


def test_a_taken_port_and_a_wrong_setting_are_clear_errors(stack: Stack) -> None:
    def start(*arguments: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env={**stack.variables, **variables}, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done.returncode, done.stderr

    code, words = start("serving", "--port", str(stack.online.port))
    assert (code, "choose another --port" in words) == (1, True)
    for program in ("serving", "serving.speed.consumer", "serving.speed.archiver"):
        code, words = start(program, NIGHTJAR_SERVING_SESION_WEIGHT="1")
        assert (code, "did you mean 'NIGHTJAR_SERVING_SESSION_WEIGHT'" in words) == (1, True)


def test_serving_starts_without_the_batch_stack() -> None:
    heavy = "{'pyspark', 'delta', 'airflow', 'feast', 'mlflow', 'pandas', 'numpy'}"
    code = f"import sys, serving.main, serving.speed.consumer; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
