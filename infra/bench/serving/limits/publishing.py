"""Publication: rows that a core packs and writes in a second, and what a publication does to answers meanwhile.

`python -m infra.bench.serving.limits.publishing BUNDLE PEOPLE ITEMS` publishes one version as a night does, in a
process of its own; the bundle lies ready beside its place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.publication import MANIFEST_FILE, Manifest
from infra.bench.report import Figure, figure
from infra.bench.serving.limits.setting import Setting, Shop
from infra.bench.serving.limits.shop import AS_OF, LargeShop
from infra.bench.serving.mix import MixName, read_mix
from infra.bench.small_installation import cpu_seconds
from infra.local.variables import REPOSITORY
from spark_jobs.giving_way import give_way
from spark_jobs.io.publication import Publication
from spark_jobs.transforms.candidates import pack_batch

LEAST_ROWS = 230_000.0
MOST_RATIO = 2.0
_PUBLISH_SECONDS = 600.0
_READY, _DONE = "ready", "done"


class Put(NamedTuple):
    """One time of packing and putting; `cpu_seconds` with those of Redis."""

    rows: int
    seconds: float
    cpu_seconds: float


def measure_publication(
    setting: Setting, *, people: int, rate: float, rounds: int
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures `publication_rows_per_core` (and `_per_second` of wall time), `publication_p99_ms` beside the time before
    it, at `rate` requests a second; `missed_bars`."""
    with ExitStack() as stack:
        shop = setting.publish(stack, "publication", people=people)
        puts = [put_again(shop, turn) for turn in range(rounds)]
        for put in puts:
            setting.say(f"{put.rows:,} rows packed and put in {put.seconds:.2f} s, {put.cpu_seconds:.2f} s of a core")
        served = setting.serve(stack, shop, workers=1, is_pinned=False)
        requests = setting.write_mix(shop, "publication", 20_000)
        setting.measure(served, requests, seconds=1)
        quiet, busy = [], []
        for turn in range(rounds):
            bundle = _bundle(shop, turn)
            quiet.append(setting.measure(served, requests, rate=rate).sent)
            publisher = _Publisher(shop, bundle)
            sending = setting.start(served, requests, rate=rate, seconds=_PUBLISH_SECONDS)
            took = publisher.publish()
            busy.append(sending.end())
            setting.say(
                f"round {turn + 1}: p99 {quiet[-1].ok_due.p99:.2f} ms, {busy[-1].ok_due.p99:.2f} ms while a version "
                f"was published in {took:.1f} s; {busy[-1].errors} errors"
            )
    figures = {
        "publication_rows_per_core": figure("1/s", [put.rows / put.cpu_seconds for put in puts], baseline=[LEAST_ROWS]),
        "publication_rows_per_second": figure("1/s", [put.rows / put.seconds for put in puts]),
        "publication_p99_ms": figure(
            "ms", [sent.ok_due.p99 for sent in busy], baseline=[sent.ok_due.p99 for sent in quiet]
        ),
    }
    errors = sum(sent.errors for sent in [*quiet, *busy])
    missed = [f"publication: {errors} errors"] if errors else []
    if figures["publication_rows_per_core"]["median"] < LEAST_ROWS:
        missed.append(f"publication: fewer than {LEAST_ROWS:,.0f} rows a second and core")
    ratio = figures["publication_p99_ms"]["ratio"] or 0.0
    if ratio >= MOST_RATIO:
        missed.append(f"publication: answers' p99 rose {ratio:.3g} times")
    void = [sent.lag.p99 for sent in [*quiet, *busy] if sent.is_void]
    more = {"publication_rate": rate, "publication_errors": errors, "publication_void_runs": len(void)}
    return figures, {**more, "missed_bars": missed}


def put_again(shop: Shop, turn: int) -> Put:
    """Pack and put everybody's list under a version that nobody reads, in this process; then take it away."""
    environment = shop.environment
    publication = Publication(environment.redis_online_url, environment.tenant)
    version = f"2024-03-07-{turn:08x}"
    batches = list(shop.shop.batches())
    processes = [psutil.Process(), psutil.Process(shop.online.process.pid)]
    cpu, began = cpu_seconds(processes), time.perf_counter()
    for batch in batches:
        publication.put_records(version, pack_batch(version, batch))
    seconds, cpu = time.perf_counter() - began, cpu_seconds(processes) - cpu
    publication.drop(version)
    return Put(shop.shop.people * shop.shop.candidates, seconds, max(cpu, 0.001))


class _Publisher:
    """A process that waits for the word to publish."""

    def __init__(self, shop: Shop, bundle: Path) -> None:
        words = [str(bundle), str(shop.shop.people), str(shop.shop.items)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.bench.serving.limits.publishing", *words],
            cwd=REPOSITORY, env=shop.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._expect(_READY)

    def publish(self) -> float:
        """Publish and flip; the seconds that it took. Raises DependencyError."""
        assert self._process.stdin is not None
        began = time.monotonic()
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._expect(_DONE)
        took = time.monotonic() - began
        self._process.communicate(timeout=_PUBLISH_SECONDS)
        return took

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        if (line := self._process.stdout.readline().strip()) != word:
            self._process.kill()
            raise DependencyError(f"the publication said {line!r}, not {word!r}")


def _bundle(shop: Shop, turn: int) -> Path:
    """The next day's bundle on disk, under a name that no server looks for."""
    environment = shop.environment
    day = (date.fromisoformat(AS_OF) + timedelta(days=turn + 1)).isoformat()
    manifest = shop.shop.write_bundle(environment, as_of=day)
    folder = Path(environment.publications) / environment.tenant / manifest.version()
    return folder.rename(folder.with_name(f".{folder.name}.tmp"))


def main() -> None:
    """When a line comes, put the bundle in its place, publish and flip."""
    bundle = Path(sys.argv[1])
    shop = LargeShop(read_mix(MixName.PLAIN), people=int(sys.argv[2]), items=int(sys.argv[3]))
    manifest = Manifest.from_json((bundle / MANIFEST_FILE).read_bytes())
    batches = list(shop.batches())  # a night reads them in native code; to think of them is none of its work
    give_way()
    print(_READY, flush=True)
    sys.stdin.readline()
    bundle.rename(bundle.with_name(manifest.version()))
    shop.put_version(Environment.from_mapping(os.environ), manifest, batches)
    print(_DONE, flush=True)


if __name__ == "__main__":
    main()
