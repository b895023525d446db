"""`nightjar bench serving`: answers of one worker core, and of the whole machine, beside an idiomatic service.

One worker of ours and one of the baseline run all the time, each with a Redis of its own, and only one has load. They
are measured in turns, so that whatever the machine does otherwise meets both. The worker has a core to itself; its
Redis and wrk share the others. Then our workers have all cores, and Redis and wrk with them.

What a request costs is processor time of the server's processes (user and system) per request: it hardly moves with
what else the machine does. Everything that an installation has switched on is on: API keys with a limit, validation,
consent, identity, stock, versions, metrics, the session model, the rules of placement `home` with exploration, and
every decision logged to disk. The other service gives the same lists: what is left to chance follows from what both are
asked with (`baseline_rules`), the id of our answer included.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.api_keys import READ
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import DEFAULT_TENANT
from infra.api_keys import ApiKeys
from infra.bench.events.ingest import Cores, free_port, listens, not_listening
from infra.bench.events.load import Load
from infra.bench.report import Figure, figure, make_report
from infra.bench.serving.mix import WITHOUT_CHANCE, MixName, read_mix, write_placements
from infra.bench.serving.shop import BenchShop
from infra.bench.small_installation import cpu_seconds
from infra.bench.wrk import require_wrk, send_load, write_load
from infra.local.redis_server import RunningServer
from infra.local.variables import REPOSITORY
from serving.settings import MULTIPROCESS_FOLDER

Say = Callable[[str], None]

BODIES = 20_000
SAMPLES = 1_000
SIMPLEST_PER_SECOND = 2_500
"""What the baseline must reach by itself on its simplest request: a slow one would flatter us."""
BARS = {"requests_per_second_per_core": 8.0, "cpu_us_per_request": 1 / 8}
START_SECONDS = 120.0
PATIENCE, PATIENCE_MS = "NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS", "200"
"""All of it shares a machine, and what is measured shall not be the cheap answers of the ladder."""
API_KEYS = "NIGHTJAR_SERVING_API_KEYS"
PLACEMENTS = "NIGHTJAR_SERVING_PLACEMENTS"
KEY_RATE, KEY_BURST = 1_000_000.0, 2_000_000
"""The limit of the key: counted with each request, and never reached."""
ASKED_MORE: Mapping[str, Mapping[str, Any]] = {
    "a filter expression": {"filter": 'not category == "C3"'},
    "the whole explanation": {"explain": True},
}
"""What known users in a session may ask for beside the mix, by what it is called in the report."""
FEW_CONNECTIONS = 8
"""Of what may take a millisecond and more: with as many as the mix has, most would be refused, which is cheap."""
RULES = "the rules of placement home: one of a product, diversity, rotation, fatigue, and exploration"
CHANCE = "exploration alone"
_FEATURE_SECONDS = 2


class Sample(NamedTuple):
    """One measurement of one server. Processor times are microseconds per request."""

    requests_per_second: float
    cpu_us: float
    redis_cpu_us: float
    worker_busy: float
    load: Load


class Served:
    """A server under test and its Redis. `cores`: None when all may use all."""

    def __init__(
        self,
        name: str,
        server: RunningServer,
        command: Sequence[str],
        variables: Mapping[str, str],
        cores: Cores | None,
        said: Path,
        *,
        workers: int = 1,
        folder: Path = REPOSITORY,
        key: str = "",
    ) -> None:
        """What it says goes to the file `said`. `key`: the API key of what is asked here."""
        self.name = name
        self._redis, self._key = server, key
        everywhere = sorted({*Cores.of_this_machine().worker, *Cores.of_this_machine().others})
        self.other_cores = cores.others if cores else everywhere
        self._client = httpx.Client(timeout=60, headers={"Authorization": f"Bearer {key}"} if key else None)
        self.port = free_port()
        words = [word.replace("{port}", str(self.port)) for word in command]
        self._said = said
        with said.open("ab") as log:
            self._process = psutil.Popen(
                words, env=dict(variables), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if cores:
            pin(self._process.pid, cores.worker)
            pin(server.process.pid, cores.others)
        self._wait(workers)

    def measure(self, bodies: Path, *, seconds: int, connections: int) -> Sample:
        """Load it for `seconds`."""
        worker, server, began = self.cpu_seconds(), self.redis_cpu_seconds(), time.monotonic()
        load = send_load(
            self.port, bodies, seconds=seconds, connections=connections, cores=self.other_cores, key=self._key
        )
        passed = time.monotonic() - began
        worker, server = self.cpu_seconds() - worker, self.redis_cpu_seconds() - server
        requests = max(1, load.requests)
        return Sample(
            load.requests / load.seconds, worker / requests * 1e6, server / requests * 1e6, worker / passed, load
        )

    def ask(self, body: Mapping[str, Any]) -> list[str]:
        """The item ids of one answer."""
        return items_of(self.post("/v1/recommendations", body))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One answer whole. Raises httpx.HTTPStatusError."""
        answer = self._client.post(f"http://127.0.0.1:{self.port}{path}", json=dict(body))
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def stop(self) -> None:
        self._client.close()
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Processor time of the server's processes so far."""
        return cpu_seconds([self._process, *self.workers()])

    def redis_cpu_seconds(self) -> float:
        """That of its Redis."""
        return cpu_seconds([psutil.Process(self._redis.process.pid)])

    def workers(self) -> list[psutil.Process]:
        """What the server has started."""
        return list(self._process.children(recursive=True))

    def _wait(self, workers: int) -> None:
        """Until it listens and, with a key, until it has read who may ask."""
        deadline = time.monotonic() + START_SECONDS
        while not listens(self.port) or (workers > 1 and len(self._process.children()) < workers):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DependencyError(not_listening(self.name, self.port, self._said))
            time.sleep(0.05)
        while self._key and time.monotonic() < deadline:
            answer = self._client.post(f"http://127.0.0.1:{self.port}/v1/recommendations", json={"num_results": 1})
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return
            time.sleep(0.05)


def items_of(answer: Mapping[str, Any]) -> list[str]:
    """The item ids of an answer, in their order."""
    return [item["item_id"] for item in answer["items"]]


def count_different(ours: Served, theirs: Served, bodies: Sequence[Mapping[str, Any]]) -> int:
    """To how many questions the baseline, told the id of our answer, gives other items, or others first."""
    different = 0
    for body in bodies:
        answer = ours.post("/v1/recommendations", body)
        different += items_of(answer) != theirs.ask({**body, "recommendation_id": answer["recommendation_id"]})
    return different


def pin(pid: int, cores: Sequence[int]) -> None:
    """From now on the process, and those it starts, run on these cores; where the system can say so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


def make_requests(
    mix: Mapping[str, Any], shop: BenchShop, kind: str | None, count: int, seed: int
) -> list[dict[str, Any]]:
    """Bodies of one kind of the mix, or of all kinds by their shares (None), in a random order."""
    drawn = random.Random(seed)  # noqa: S311
    kinds = list(mix["kinds"])
    shares = [mix["kinds"][name]["share"] for name in kinds]
    bodies = []
    for _ in range(count):
        chosen = mix["kinds"][kind or drawn.choices(kinds, shares)[0]]
        person = drawn.randrange(shop.people)
        body = json.loads(json.dumps(chosen["body"]).replace("{n}", str(person)))
        if "placement" in mix:
            body["placement"] = mix["placement"]
        if excluded := chosen.get("excluded"):
            rows = shop.candidates_of(person)
            body["exclude_item_ids"] = [f"i{rows[3 * at].item_number}" for at in range(excluded)]
        bodies.append(body)
    return bodies


def bench_serving(
    home: Path,
    variables: Mapping[str, str],
    *,
    mix_name: MixName,
    pairs: int,
    seconds: int,
    connections: int,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures: `requests_per_second_per_core`, `cpu_us_per_request` (of the server), `redis_cpu_us_per_request` and
    `p99_ms`, each against the baseline; `requests_per_second_box`, `box_p99_ms`. Further keys: errors,
    different_answers of `samples`, baseline_simplest_per_second, us_per_feature, missed_bars, worker_busy.
    """
    require_wrk()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    mix = read_mix(mix_name)
    shop = BenchShop(mix)
    cores = Cores.of_this_machine()
    load = write_load(home, "mix", make_requests(mix, shop, None, BODIES, seed))
    with ExitStack() as stack:
        store, plain, environment = bench_stores(stack, home, variables)
        say(f"writing lists and sessions of {shop.people:,} people, twice")
        now_micros = time.time_ns() // 1000
        with redis.Redis.from_url(store.url) as online, redis.Redis.from_url(plain.url) as other:
            shop.publish(Environment.from_mapping(environment), online, now_micros=now_micros)
            shop.publish_plain(other, now_micros=now_micros)
        catalogue = home / "catalogue.json"
        placements = write_placements(mix, home / "placements.json")
        environment[PLACEMENTS] = str(home / "placements.json")
        shop.write_catalogue(catalogue, placements.by_name)
        key = make_key(environment)
        theirs = [sys.executable, "-m", "infra.bench.serving.baseline", "{port}", plain.url, str(catalogue)]
        nightjar = Served("nightjar", store, our_command(1), environment, cores, home / "nightjar.log", key=key)
        stack.callback(nightjar.stop)
        baseline = Served("baseline", plain, theirs, environment, cores, home / "baseline.log")
        stack.callback(baseline.stop)
        samples = make_requests(mix, shop, None, SAMPLES, seed + 1)
        different = count_different(nightjar, baseline, samples)
        say(f"{SAMPLES:,} samples: {different} have other items")
        simplest = write_load(home, "simplest", [{"num_results": 1}])
        options: dict[str, Any] = {"connections": connections}
        simple = baseline.measure(simplest, seconds=_FEATURE_SECONDS, **options)
        say(f"the baseline's simplest request: {simple.requests_per_second:,.0f} a second")
        for side in (nightjar, baseline):  # warm
            side.measure(load, seconds=1, **options)
        found: dict[str, list[Sample]] = {"nightjar": [], "baseline": [], "box": []}
        for pair in range(pairs):
            for side in (nightjar, baseline) if pair % 2 == 0 else (baseline, nightjar):
                sample = side.measure(load, seconds=seconds, **options)
                found[side.name].append(sample)
                say(f"pair {pair + 1}, {side.name}: {words_of(sample)}")
        keyless = {name: value for name, value in environment.items() if name != API_KEYS}
        open_to_all = Served("nightjar", store, our_command(1), keyless, cores, home / "open.log")
        stack.callback(open_to_all.stop)
        features = _features(nightjar, open_to_all, home, mix, shop, seed, options)
        nightjar.stop()
        open_to_all.stop()
        baseline.stop()
        everybody = len(cores.worker) + len(cores.others) if cores.others != cores.worker else 1
        for server in (store, plain):
            pin(server.process.pid, sorted({*cores.worker, *cores.others}))
        box = Served(
            "box", store, our_command(everybody), environment, None, home / "box.log", workers=everybody, key=key
        )
        stack.callback(box.stop)
        box.measure(load, seconds=1, **options)
        for number in range(pairs):
            found["box"].append(box.measure(load, seconds=seconds, **options))
            say(f"{everybody} workers, run {number + 1}: {words_of(found['box'][-1])}")
    shutil.rmtree(home, ignore_errors=True)
    return _report(variables, found, different, simple.requests_per_second, features, connections, mix_name)


def _features(
    served: Served,
    open_to_all: Served,
    home: Path,
    mix: Mapping[str, Any],
    shop: BenchShop,
    seed: int,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """What parts of an answer cost, in microseconds: differences between kinds of requests. `open_to_all`: the same
    server without keys."""
    strangers = make_requests(mix, shop, "known", BODIES, seed)
    kinds = {name: make_requests(mix, shop, name, BODIES, seed) for name in mix["kinds"]}
    kinds["calm"] = [{**body, "session_id": "another"} for body in strangers]
    if "placement" in mix:
        kinds["ruleless"] = [{**body, "placement": "default"} for body in strangers]
        kinds["certain"] = [{**body, "placement": WITHOUT_CHANCE} for body in strangers]
    cost = {
        name: served.measure(write_load(home, f"kind-{at}", bodies), seconds=_FEATURE_SECONDS, **options).cpu_us
        for at, (name, bodies) in enumerate(kinds.items())
    }
    known = write_load(home, "known", strangers)
    few = {**options, "connections": FEW_CONNECTIONS}
    asked = served.measure(known, seconds=_FEATURE_SECONDS, **few).cpu_us
    more = {
        name: _cost_of_all(served, write_load(home, f"more-{at}", [{**body, **extra} for body in strangers]), few)
        - asked
        for at, (name, extra) in enumerate(ASKED_MORE.items())
    }
    open_to_all.measure(known, seconds=1, **options)  # warm
    unasked = open_to_all.measure(known, seconds=_FEATURE_SECONDS, **options).cpu_us
    found = {
        "a popular list, read, arranged by the placement, answered, counted and logged": cost["cold"],
        "a list of one's own": cost["calm"] - cost["cold"],
        "a session of 5 events": cost["known"] - cost["calm"],
        "10 excluded items and a category": cost["filtered"] - cost["known"],
        "an API key and its limit": cost["known"] - unasked,
        **more,
    }
    if "placement" in mix:
        found |= {RULES: cost["known"] - cost["ruleless"], CHANCE: cost["known"] - cost["certain"]}
    return {name: round(value, 1) for name, value in found.items()}


def _cost_of_all(served: Served, load: Path, options: Mapping[str, Any]) -> float:
    """Microseconds of one answer. Raises DependencyError when some were refused: their cost would be told as if it were
    that of answers."""
    sample = served.measure(load, seconds=_FEATURE_SECONDS, **options)
    if sample.load.errors:
        raise DependencyError(
            f"{sample.load.errors} requests of {load.name} failed; their answers' cost cannot be told"
        )
    return sample.cpu_us


def words_of(sample: Sample) -> str:
    """One sample on one line."""
    errors = f", {sample.load.errors} errors" if sample.load.errors else ""
    return (
        f"{sample.requests_per_second:,.0f} requests/s, {sample.cpu_us:.1f} us of the server each, "
        f"p99 {sample.load.p99_ms:.1f} ms{errors}"
    )


def _report(
    variables: Mapping[str, str],
    found: Mapping[str, Sequence[Sample]],
    different: int,
    simplest: float,
    features: Mapping[str, float],
    connections: int,
    mix_name: MixName,
) -> dict[str, Any]:
    def compared(unit: str, value: Callable[[Sample], float]) -> Figure:
        ours, theirs = ([value(sample) for sample in found[name]] for name in ("nightjar", "baseline"))
        return figure(unit, ours, baseline=theirs)

    figures = {
        "requests_per_second_per_core": compared("1/s", lambda s: s.requests_per_second),
        "cpu_us_per_request": compared("us", lambda s: s.cpu_us),
        "redis_cpu_us_per_request": compared("us", lambda s: s.redis_cpu_us),
        "p99_ms": compared("ms", lambda s: s.load.p99_ms),
        "requests_per_second_box": figure("1/s", [s.requests_per_second for s in found["box"]]),
        "box_p99_ms": figure("ms", [s.load.p99_ms for s in found["box"]]),
    }
    speed, cost = (figures[name]["ratio"] or 0.0 for name in BARS)
    is_met = (speed >= BARS["requests_per_second_per_core"], cost <= BARS["cpu_us_per_request"])
    missed = [name for name, met in zip(BARS, is_met, strict=True) if not met]
    return make_report(
        "bench serving",
        figures,
        str(variables.get(names.CODE_VERSION, "")),
        errors=sum(sample.load.errors for samples in found.values() for sample in samples),
        samples=SAMPLES,
        different_answers=different,
        baseline_simplest_per_second=round(simplest),
        baseline_is_fast_enough=simplest > SIMPLEST_PER_SECOND,
        us_per_feature=dict(features),
        missed_bars=missed,
        worker_busy=round(min(sample.worker_busy for sample in found["nightjar"]), 3),
        connections=connections,
        mix=mix_name.value,
    )


def make_key(variables: dict[str, str]) -> str:
    """A key that may read, in the Redis `log` of these variables, which want keys from now on."""
    variables[API_KEYS] = "on"
    with redis.Redis.from_url(variables[names.REDIS_LOG_URL]) as log:
        keys = ApiKeys(log, tenant=DEFAULT_TENANT, random=os.urandom)
        key, _ = keys.create(
            "bench", [READ], requests_per_second=KEY_RATE, burst=KEY_BURST, by="bench", at_micros=time.time_ns() // 1000
        )
    return key


def our_command(workers: int) -> list[str]:
    """Our server, on the port that stands for `{port}`."""
    return [sys.executable, "-m", "serving", "--port", "{port}", "--workers", str(workers)]


def bench_stores(
    stack: ExitStack, home: Path, variables: Mapping[str, str]
) -> tuple[RunningServer, RunningServer, dict[str, str]]:
    """Redis `online` of ours, the baseline's, and the variables of our programs; `log` runs too."""
    log = stack.enter_context(RunningServer("log", home / "redis-log"))
    online = stack.enter_context(RunningServer("online", home / "redis-online"))
    plain = stack.enter_context(RunningServer("online", home / "redis-baseline"))
    return online, plain, {
        **{name: value for name, value in variables.items() if not name.startswith("NIGHTJAR_")},
        names.HOME: str(home),
        names.REDIS_LOG_URL: log.url,
        names.REDIS_ONLINE_URL: online.url,
        PATIENCE: PATIENCE_MS,
        MULTIPROCESS_FOLDER: str(home / "metrics"),
    }  # fmt: skip
