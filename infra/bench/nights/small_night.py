"""One small simulated shop, imported once; every night on it is the first night of a tenant of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from infra.importing.shop import import_shop
from infra.local.programs import Attempt
from infra.local.stack import down, up
from infra.local.variables import REPOSITORY, stack_variables
from infra.simulator.config import ShopConfig
from infra.simulator.shop import simulate_shop

STORES = ("redis-log", "redis-online", "mlflow")
SHOP_DAYS = 20

Say = Callable[[str], None]


class Night(NamedTuple):
    """What a night took and left."""

    attempts: list[Attempt]
    hashes: Mapping[str, str]
    version: str

    @property
    def seconds(self) -> float:
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def cpu_seconds(self) -> float:
        return sum(attempt.cpu_seconds for attempt in self.attempts)

    @property
    def lost(self) -> list[float]:
        """Seconds of work that each kill destroyed, its own restart being part of the next attempt."""
        return [attempt.seconds for attempt in self.attempts if attempt.killed]


@contextmanager
def imported_shop(
    home: Path, variables: Mapping[str, str], *, event_count: int, say: Say
) -> Iterator[tuple[Mapping[str, str], str]]:
    """In `home` (made anew), with the stores running meanwhile: (variables of programs, as_of of the first night)."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    here = {**variables, names.HOME: str(home)}
    shop = small_shop(event_count)
    say(f"simulating and importing {event_count:,} events")
    simulate_shop(shop, home / "shop")
    try:
        up(here, only=STORES)
        base = stack_variables(here)
        import_shop(home / "shop", Environment.from_mapping(base))
        yield base, shop.end_day.isoformat()
    finally:
        down(here)


def tenant_of_its_own(base: Mapping[str, str], tenant: str) -> tuple[dict[str, str], Path]:
    """(variables of its programs, their log), its bronze tables being those of the shop.

    Raises DataError when the tables lie on an object store, where folders cannot be copied.
    """
    variables = {**base, names.TENANT: tenant}
    environment = Environment.from_mapping(variables)
    if environment.store is not None:
        raise DataError(
            f"nights are compared in a folder, but NIGHTJAR_LAKEHOUSE names {environment.lakehouse}; unset it"
        )
    shutil.copytree(Path(environment.lakehouse) / "default" / "bronze", Path(environment.lakehouse) / tenant / "bronze")
    return variables, Path(environment.home) / "logs" / f"{tenant}.log"


def small_shop(event_count: int) -> ShopConfig:
    """A shop of a few thousand events within few days: one crawler's burst must not be most of what a day brings, or
    the quality gate stops the night."""
    return replace(
        ShopConfig(), event_count=event_count, user_count=max(10, event_count // 60), item_count=200, days=SHOP_DAYS
    )


def night_hashes(variables: Mapping[str, str], as_of: str) -> tuple[dict[str, str], str]:
    """(what `nightjar hash --as-of` prints, the published version). Raises DependencyError when it fails."""
    command = [sys.executable, "-m", "infra.cli.main", "hash", "--as-of", as_of, "--json"]
    done = subprocess.run(command, env=dict(variables), cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise DependencyError(f"nightjar hash failed: {done.stderr.strip()}")
    answer = json.loads(done.stdout)
    return answer["hashes"], str(answer["version"])
