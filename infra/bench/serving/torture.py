"""`nightjar torture serving`: the API answers, in time and within the rules, whatever Redis does.

An API with two workers as an installation runs it (keys needed, decisions logged), Redis `online` behind a proxy that
does harm (`fault_proxy`), questions at a steady rate from a program of its own (`steady_load`), which looks at every
answer. Then more questions than the API can answer, then a thousand changes of the published version under load.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.api_keys import ADMIN, READ
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import DEFAULT_TENANT, pointer_key
from infra.api_keys import ApiKeys
from infra.bench.events.ingest import free_port
from infra.bench.report import figure, make_report
from infra.bench.sender import Sender, Sent, http_request, write_requests
from infra.bench.serving.fault_proxy import FAULTS
from infra.bench.serving.judging import Harm, judge
from infra.bench.serving.steady_load import FIELDS, LINE, Rules, Seen
from infra.bench.small_installation import SmallInstallation, cpu_seconds
from infra.bench.small_version import publish_small_version
from infra.local.redis_server import RunningServer
from infra.local.variables import REPOSITORY

Say = Callable[[str], None]

PEOPLE = 2_000
WORKERS = 2
CONNECTIONS = 128
HIDDEN = ("i0", "i1", "i2", "i7")
"""Items at the top of the popular list: a rung that forgets the rules shows them."""
SETTLE_SECONDS = 2.5
"""After each harm; recovery is looked at within it."""
MIN_GOOD_SHARE = 0.9999
MAX_RECOVERY_SECONDS = 2.0
MIN_GOODPUT = 0.9
MAX_GROWTH = 0.1
OVERLOAD = 5
MOST_REFUSAL_MS = 1.0
FLIP_SECONDS = 0.02
OVERLOAD_CONNECTIONS = 2_000


def torture_serving(
    home: Path,
    variables: Mapping[str, str],
    *,
    seconds: float,
    rate: float,
    overload_seconds: float,
    flips: int,
    say: Say,
    faults: Sequence[str] = FAULTS,
    settle_seconds: float = SETTLE_SECONDS,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report. `settings`: further variables of the API;
    `settle_seconds`: how long recovery is looked at after each harm.

    Figures, one sample a fault: `good_share`, `recovery_seconds` (`settle_seconds` where it did not recover); and
    `overload_goodput` (of the peak), `overload_worker_goodput` (the same of slates a second of the workers' processor
    time: without what the generator takes from them on the same machine; no bar),
    `memory_growth` (of the workers' resident memory under overload, from when they have seen a rush once),
    `refusal_p50_ms` and `refusal_p99_ms` (of a 503, from when the request left), `mixed_answers`.
    Further keys: clean, missed (what keeps it from being clean), harms (fault -> Harm), quiet (Harm of a time without
    any), peak_per_second, offered_per_second, goodput_per_second, refused_per_second, overload_failed, answer_p99_ms,
    memory_rise (by which the first rush made the workers larger than the peak had), generator_cores,
    overload_lag_p99_ms, flips, flips_harm, versions_seen, lag_p99_ms, worker_ends, examples.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with ExitStack() as stack:
        proxy_port = free_port()
        given = {
            names.REDIS_ONLINE_URL: f"redis://127.0.0.1:{proxy_port}/0",
            "NIGHTJAR_SERVING_API_KEYS": "on",
            "NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS": "5",
            **(settings or {}),
        }
        inst = stack.enter_context(SmallInstallation(home, variables, people=PEOPLE, settings=given))
        empty = stack.enter_context(RunningServer("online", home / "redis-empty"))
        with redis.Redis.from_url(inst.log.url) as log:
            keys = ApiKeys(log, tenant=DEFAULT_TENANT, random=os.urandom)
            key, _ = keys.create("torture", [READ, ADMIN], by="torture", at_micros=time.time_ns() // 1000)
        proxy = stack.enter_context(_Proxy(proxy_port, inst.online.port, empty.port, inst.variables))
        api, port = inst.start_api(workers=WORKERS)
        client = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=30,
            )
        )
        first = _wait_until_ready(client)
        changes = [{"item_id": item, "is_hidden": True} for item in HIDDEN]
        client.patch("/v1/items", json=changes).raise_for_status()
        rules = Rules({first: "i"}, list(HIDDEN), PEOPLE)
        load = _Load(port, rate, CONNECTIONS, key, rules, inst.variables)
        programs = {
            "api": [psutil.Process(api.pid), *api.children()],
            "load": [psutil.Process(load.pid)],
            "proxy": [psutil.Process(proxy.pid)],
            "redis": [psutil.Process(server.process.pid) for server in (inst.log, inst.online, empty)],
        }
        windows = _do_harm(proxy, programs, faults, seconds, settle_seconds, say)
        seen = load.end()
        harms = {
            name: judge(seen, began, ended, settle_seconds, processor)
            for name, (began, ended, processor) in windows.items()
        }
        for name, harm in harms.items():
            say(f"{name}: {_said(harm)}")
        overload = _overload(home, port, key, api, overload_seconds, say)
        flipped = _flip(inst, port, key, rate, flips, say)
        worker_ends = inst.log_of("serving").read_text(encoding="utf-8", errors="replace").count(" ended with ")
    quiet = harms.pop("none")
    code_version = str(variables.get(names.CODE_VERSION, ""))
    report = _report(harms, quiet, overload, flipped, worker_ends, settle_seconds, code_version)
    report["lag_p99_ms"], report["examples"] = round(seen.lag_p99_ms, 3), [*seen.examples, *flipped["examples"]]
    if report["clean"]:
        shutil.rmtree(home, ignore_errors=True)
    return report


def _do_harm(
    proxy: _Proxy,
    programs: Mapping[str, Sequence[psutil.Process]],
    faults: Sequence[str],
    seconds: float,
    settle_seconds: float,
    say: Say,
) -> dict[str, tuple[float, float, dict[str, float]]]:
    """When each fault lasted, on the monotonic clock, and who used the processor; `none` is a time without any, at the
    beginning."""
    windows = {}
    time.sleep(min(1.0, seconds))
    for fault in ("none", *faults):
        say(f"{fault} for {seconds:g} s")
        proxy.change(fault)
        began, before = time.monotonic(), _processor_seconds(programs)
        time.sleep(seconds)
        after, ended = _processor_seconds(programs), time.monotonic()
        windows[fault] = (began, ended, {name: round((after[name] - before[name]) / seconds, 3) for name in after})
        if fault != "none":
            proxy.change("none")
            time.sleep(settle_seconds)
    return windows


def _processor_seconds(programs: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    """What each used so far; `others` is the rest of the machine, `host` what its host took from it."""
    found = {name: cpu_seconds(processes) for name, processes in programs.items()}
    machine = psutil.cpu_times()
    own = sum(found.values())
    found["others"] = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - own
    found["host"] = getattr(machine, "steal", 0.0)
    found["others"] -= found["host"]
    return found


def _overload(home: Path, port: int, key: str, api: psutil.Popen, seconds: float, say: Say) -> dict[str, float]:
    """The peak of the longest answers, then five times as many of them: what is still answered, and what it costs."""
    if seconds <= 0:
        return {}
    bodies = ({"user_id": f"u{person}", "num_results": 100, "explain": True} for person in range(PEOPLE))
    requests = write_requests(
        home / "heavy.requests", (http_request("/v1/recommendations", body, key=key) for body in bodies)
    )
    sender = Sender(home)

    def send(**options: Any) -> tuple[Sent, float]:
        """What came of it, and its slates a second of the workers' processor time."""
        began = cpu_seconds(api.children())
        sent = sender.send(port, requests, **options)
        return sent, sent.ok_due.count / max(cpu_seconds(api.children()) - began, 0.001)

    # the best of three: what else the machine does must not make the peak low, and the goodput seem high
    part = max(1.0, seconds / 18)
    peaks = [send(rate=0, seconds=part, connections=32) for _ in range(3)]
    peak = max(sent.per_second for sent, _ in peaks)
    calm = _resident_mb(api)
    # a rush opens its connections and fills the places: that is not what memory is watched for
    sender.send(port, requests, rate=OVERLOAD * peak, seconds=part, connections=OVERLOAD_CONNECTIONS)
    before = _resident_mb(api)
    sent, per_worker_second = send(rate=OVERLOAD * peak, seconds=seconds, connections=OVERLOAD_CONNECTIONS)
    found = {
        "peak_per_second": round(peak, 1),
        "offered_per_second": round(OVERLOAD * peak, 1),
        "goodput_per_second": round(sent.per_second, 1),
        "refused_per_second": round(sent.refused_sent.count / sent.seconds, 1),
        "overload_goodput": sent.per_second / peak,
        "overload_worker_goodput": per_worker_second / max(of_worker for _, of_worker in peaks),
        "generator_cores": round(sent.processor_seconds / sent.seconds, 3),
        "overload_failed": sent.failed + sent.unanswered,
        "refusal_p50_ms": sent.refused_sent.p50,
        "refusal_p99_ms": sent.refused_sent.p99,
        "answer_p99_ms": sent.ok_sent.p99,
        "overload_lag_p99_ms": sent.lag.p99,
        "memory_rise": before / calm - 1,
        "memory_growth": _resident_mb(api) / before - 1,
    }
    say(f"overload: {json.dumps({name: round(value, 3) for name, value in found.items()})}")
    return found


def _flip(inst: SmallInstallation, port: int, key: str, rate: float, flips: int, say: Say) -> dict[str, Any]:
    """Change the published version again and again under load."""
    if flips <= 0:
        return {"flips": 0, "mixed": 0, "versions_seen": {}, "harm": None, "examples": []}
    with redis.Redis.from_url(inst.online.url) as online:
        first = online.get(pointer_key()).decode()
        second = publish_small_version(inst.environment, online, people=PEOPLE, prefix="j")
        time.sleep(1.5)  # both workers have loaded it
        rules = Rules({first: "i", second: "j"}, list(HIDDEN), PEOPLE)
        load = _Load(port, rate, CONNECTIONS, key, rules, inst.variables)
        began = time.monotonic()
        for number in range(flips):
            online.set(pointer_key(), (first, second)[number % 2])
            time.sleep(FLIP_SECONDS)
        ended = time.monotonic()
        seen = load.end()
    harm = judge(seen, began, ended, 0.0)
    mixed = sum(bucket[FIELDS.index("unclean")] for bucket in seen.buckets.values())
    say(f"{flips} flips: {_said(harm)}; versions {seen.versions}, {seen.reasons}")
    return {
        "flips": flips,
        "mixed": mixed,
        "versions_seen": seen.versions,
        "reasons": seen.reasons,
        "harm": harm,
        "examples": seen.examples,
    }


def _report(
    harms: Mapping[str, Harm],
    quiet: Harm,
    overload: Mapping[str, float],
    flipped: Mapping[str, Any],
    worker_ends: int,
    settle_seconds: float,
    code_version: str,
) -> dict[str, Any]:
    recoveries = [settle_seconds if h.recovery_seconds is None else h.recovery_seconds for h in harms.values()]
    figures = {
        "good_share": figure("1", [harm.good_share for harm in harms.values()], baseline=[quiet.good_share]),
        "recovery_seconds": figure("s", recoveries),
    }
    missed = [f"{name}: good_share" for name, harm in harms.items() if harm.good_share < MIN_GOOD_SHARE]
    missed += [f"{name}: unclean answers" for name, harm in harms.items() if harm.unclean]
    for name, seconds in zip(harms, recoveries, strict=True):
        if seconds > MAX_RECOVERY_SECONDS:
            missed.append(f"{name}: recovery")
    if overload:
        figures["overload_goodput"] = figure("1", [overload["overload_goodput"]])
        figures["overload_worker_goodput"] = figure("1", [overload["overload_worker_goodput"]])
        figures["memory_growth"] = figure("1", [overload["memory_growth"]])
        for name in ("refusal_p50_ms", "refusal_p99_ms"):
            figures[name] = figure("ms", [overload[name]], baseline=[MOST_REFUSAL_MS])
        if overload["overload_goodput"] < MIN_GOODPUT:
            missed.append("overload_goodput")
        if overload["overload_failed"]:
            missed.append("overload: requests failed")
        if overload["memory_growth"] > MAX_GROWTH:
            missed.append("memory_growth")
    if flipped["flips"]:
        figures["mixed_answers"] = figure("1", [flipped["mixed"]])
        if flipped["mixed"] or len(flipped["versions_seen"]) != 2:
            missed.append("mixed_answers")
    if worker_ends:
        missed.append("worker_ends")
    return make_report(
        "torture serving",
        figures,
        code_version,
        clean=not missed,
        missed=missed,
        harms={name: harm._asdict() for name, harm in harms.items()},
        quiet=quiet._asdict(),
        **{name: value for name, value in overload.items() if name not in figures},
        flips=flipped["flips"],
        flips_harm=flipped["harm"]._asdict() if flipped["harm"] else None,
        versions_seen=flipped["versions_seen"],
        worker_ends=worker_ends,
    )


def _said(harm: Harm) -> str:
    again = "not again" if harm.recovery_seconds is None else f"again after {harm.recovery_seconds:.2f} s"
    return (
        f"{harm.questions:,} questions, {harm.good_share:.4%} good, {harm.valid_share:.4%} valid, "
        f"{harm.unclean} unclean, {harm.failed} failed, {harm.unsent} unsent, "
        f"{harm.refused} refused, {harm.personal_share:.1%} personal, "
        f"all {again}; not good at {[list(spell) for spell in harm.spells]}; processors: {harm.processor}"
    )


def _wait_until_ready(client: httpx.Client) -> str:
    """The version that is served, once it is."""
    deadline = time.monotonic() + 30
    while (answer := client.get("/health/ready")).status_code != 200:
        if time.monotonic() > deadline:
            raise DependencyError(f"the API is not ready: {answer.text[:300]}")
        time.sleep(0.05)
    return str(answer.json()["model_version"])


def _resident_mb(api: psutil.Popen) -> float:
    return float(sum(worker.memory_info().rss for worker in api.children()) / 1e6)


class _Proxy:
    """The proxy in a process of its own."""

    def __init__(self, port: int, redis_port: int, empty_port: int, variables: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "infra.bench.serving.fault_proxy", str(port), str(redis_port), str(empty_port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=dict(variables)
        )
        self.pid = self._process.pid
        self._expect("none")

    def change(self, fault: str) -> None:
        """When this returns, the fault holds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{fault}\n")
        self._process.stdin.flush()
        self._expect(fault)

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        if (line := self._process.stdout.readline().strip()) != word:
            raise DependencyError(f"the proxy said {line!r}, not {word!r}")

    def __enter__(self) -> _Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class _Load:
    """A running `steady_load`."""

    def __init__(
        self, port: int, rate: float, connections: int, key: str, rules: Rules, variables: Mapping[str, str]
    ) -> None:
        words = [port, rate, connections, key, json.dumps(rules._asdict())]
        command = [sys.executable, "-m", "infra.bench.serving.steady_load", *map(str, words)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=dict(variables)
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != LINE + "started":
            raise DependencyError("the load did not start")

    def end(self) -> Seen:
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=120)
        lines = [line.removeprefix(LINE) for line in output.splitlines() if line.startswith(LINE)]
        if len(lines) != 1:
            raise DependencyError(f"the load ended with {self._process.returncode} and said: {output[-300:]}")
        found = json.loads(lines[0])
        return Seen(**{**found, "buckets": {int(number): counts for number, counts in found["buckets"].items()}})
