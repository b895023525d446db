"""`nightjar bench regression`: what an answer costs now, beside another revision of this repository.

The other revision is checked out beside the bench's own files. One worker of each answers the mix of `bench serving`
from the same Redis and the same published version, in turns; processor time per request is compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.bench.events.ingest import Cores
from infra.bench.report import figure, make_report
from infra.bench.serving.mix import WITHOUT_CHANCE, MixName, read_mix, write_placements
from infra.bench.serving.shop import BenchShop
from infra.bench.serving.throughput import (
    BODIES,
    PATIENCE,
    PATIENCE_MS,
    PLACEMENTS,
    Sample,
    Say,
    Served,
    make_requests,
    words_of,
)
from infra.bench.wrk import require_wrk, write_load
from infra.local.redis_server import RunningServer
from infra.local.variables import REPOSITORY
from serving.settings import MULTIPROCESS_FOLDER

SAMPLES = 200
PEOPLE = 2_000
ALLOWED = 1.05
"""From this ratio on an answer has become dearer; below it is what two runs of one revision differ by."""


def bench_regression(
    home: Path,
    variables: Mapping[str, str],
    *,
    base: str,
    mix_name: MixName,
    pairs: int,
    seconds: int,
    connections: int,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report. Raises DataError when git does not know `base`.

    Figures: `cpu_us_per_request`, `requests_per_second_per_core` and `p99_ms`, each against `base`. Further keys: base,
    errors, different_answers of `samples`, is_dearer.
    """
    require_wrk()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    mix = read_mix(mix_name)
    shop = BenchShop(mix, people=PEOPLE)
    cores = Cores.of_this_machine()
    load = write_load(home, "mix", make_requests(mix, shop, None, BODIES, seed))
    with ExitStack() as stack:
        other = stack.enter_context(_Checkout(base, home / "base"))
        log = stack.enter_context(RunningServer("log", home / "redis-log"))
        online = stack.enter_context(RunningServer("online", home / "redis-online"))
        shared = {
            **{name: value for name, value in variables.items() if not name.startswith("NIGHTJAR_")},
            names.HOME: str(home),
            names.REDIS_LOG_URL: log.url,
            names.REDIS_ONLINE_URL: online.url,
            PATIENCE: PATIENCE_MS,
        }
        write_placements(mix, home / "placements.json")
        shared[PLACEMENTS] = str(home / "placements.json")
        with redis.Redis.from_url(online.url) as client:
            shop.publish(Environment.from_mapping(shared), client, now_micros=time.time_ns() // 1000)
        sides: list[Served] = []
        for name, folder in (("now", REPOSITORY), (base, other.folder)):
            here = {**shared, "PYTHONPATH": str(folder), MULTIPROCESS_FOLDER: str(home / f"metrics-{len(sides)}")}
            command = [sys.executable, "-m", "serving", "--port", "{port}", "--workers", "1"]
            sides.append(Served(name, online, command, here, cores, home / f"side-{len(sides)}.log", folder=folder))
            stack.callback(sides[-1].stop)
        calm = mix | {"placement": WITHOUT_CHANCE} if "placement" in mix else mix  # each answer has draws of its own
        different = sum(
            sides[0].ask(body) != sides[1].ask(body) for body in make_requests(calm, shop, None, SAMPLES, seed + 1)
        )
        for side in sides:  # warm
            side.measure(load, seconds=1, connections=connections)
        found: dict[str, list[Sample]] = {"now": [], "before": []}
        for pair in range(pairs):
            for name, side in list(zip(found, sides, strict=True))[:: 1 if pair % 2 == 0 else -1]:
                found[name].append(side.measure(load, seconds=seconds, connections=connections))
                say(f"pair {pair + 1}, {side.name}: {words_of(found[name][-1])}")
    shutil.rmtree(home, ignore_errors=True)
    ours, theirs = found["now"], found["before"]
    cost = figure("us", [s.cpu_us for s in ours], baseline=[s.cpu_us for s in theirs])
    rates = ([s.requests_per_second for s in some] for some in (ours, theirs))
    return make_report(
        "bench regression",
        {
            "cpu_us_per_request": cost,
            "requests_per_second_per_core": figure("1/s", next(rates), baseline=next(rates)),
            "p99_ms": figure("ms", [s.load.p99_ms for s in ours], baseline=[s.load.p99_ms for s in theirs]),
        },
        str(variables.get(names.CODE_VERSION, "")),
        base=other.commit,
        errors=sum(sample.load.errors for some in found.values() for sample in some),
        samples=SAMPLES,
        different_answers=different,
        is_dearer=(cost["ratio"] or 0.0) > ALLOWED,
    )


class _Checkout:
    """A revision in a folder of its own, for as long as the `with` lasts. `commit`: its full name."""

    def __init__(self, revision: str, folder: Path) -> None:
        self._revision = revision
        self.folder = folder
        self.commit = ""

    def __enter__(self) -> _Checkout:
        self.commit = _git("rev-parse", "--verify", f"{self._revision}^{{commit}}")
        _git("worktree", "add", "--detach", "--force", str(self.folder), self.commit)
        if (self.folder / "infra" / "native" / "compiling.py").exists():  # as `make setup` does there
            command = [sys.executable, "-m", "infra.native.compiling"]
            here = {**os.environ, "PYTHONPATH": str(self.folder)}
            subprocess.run(command, cwd=self.folder, env=here, check=True, capture_output=True)
        return self

    def __exit__(self, *_: object) -> None:
        _git("worktree", "remove", "--force", str(self.folder))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise DataError(f"--base: `git {words[0]}` says {done.stderr.strip()[-300:]!r}", field="--base")
    return done.stdout.strip()
