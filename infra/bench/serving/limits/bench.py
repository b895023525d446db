"""`nightjar bench serving-limits`: the parts, one after another, and one report of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import DataError, nearest
from infra.bench.report import Figure, make_report
from infra.bench.serving.limits.flat import measure_flatness
from infra.bench.serving.limits.open_loop import measure_open_loop
from infra.bench.serving.limits.publishing import measure_publication
from infra.bench.serving.limits.setting import Say, Setting
from infra.bench.serving.limits.start import measure_start

STEADY = ("open_loop", "rank", "pages")
PARTS = (*STEADY, "flat", "publication", "start")


class Sizes(NamedTuple):
    """How much is measured. `seconds`: of each measurement; `rates`: requests a second; `publication_rate`: those
    during a publication; `usual_people`, `usual_items`: of every other shop (None: as the mix says)."""

    rounds: int = 3
    seconds: float = 6.0
    connections: int = 64
    workers: int | None = None
    rates: Sequence[float] = (500, 1_000, 2_000, 5_000, 10_000)
    publication_rate: float = 500.0
    publication_people: int = 100_000
    flat_people: int = 1_000_000
    flat_items: int = 200_000
    usual_people: int | None = None
    usual_items: int | None = None


def bench_limits(
    home: Path, variables: Mapping[str, str], *, parts: Sequence[str], sizes: Sizes, seed: int, say: Say
) -> dict[str, Any]:
    """Run the parts in `home` (made anew) and return the report; its figures and keys are those of the parts.

    Raises DataError for a part that there is not.
    """
    for part in parts:
        if part not in PARTS:
            raise DataError(f"no part {part!r}{nearest(part, PARTS)}; there are {', '.join(PARTS)}", field="part")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    setting = Setting(home, variables, connections=sizes.connections, seconds=sizes.seconds, seed=seed, say=say)
    for name, size in (("people", sizes.usual_people), ("items", sizes.usual_items)):
        setting.mix[name] = size or setting.mix[name]
    found: list[tuple[dict[str, Figure], dict[str, Any]]] = []
    for measure in _measures(setting, parts, sizes):
        found.append(measure())
    shutil.rmtree(home, ignore_errors=True)
    figures: dict[str, Figure] = {}
    more: dict[str, Any] = {"missed_bars": []}
    for some, told in found:
        figures |= some
        more |= {**told, "missed_bars": more["missed_bars"] + told["missed_bars"]}
    code_version = str(variables.get(names.CODE_VERSION, ""))
    return make_report(
        "bench serving-limits", figures, code_version, parts=list(parts), connections=sizes.connections, **more
    )


def _measures(
    setting: Setting, parts: Sequence[str], sizes: Sizes
) -> list[Callable[[], tuple[dict[str, Figure], dict[str, Any]]]]:
    cores = len({*setting.cores.worker, *setting.cores.others})
    found: list[Callable[[], tuple[dict[str, Figure], dict[str, Any]]]] = []
    if kinds := [part for part in STEADY if part in parts]:
        found.append(
            lambda: measure_open_loop(
                setting, kinds=kinds, rates=sizes.rates, rounds=sizes.rounds, workers=sizes.workers or cores
            )
        )
    if "flat" in parts:
        found.append(
            lambda: measure_flatness(setting, people=sizes.flat_people, items=sizes.flat_items, rounds=sizes.rounds)
        )
    if "publication" in parts:
        found.append(
            lambda: measure_publication(
                setting, people=sizes.publication_people, rate=sizes.publication_rate, rounds=sizes.rounds
            )
        )
    if "start" in parts:
        found.append(lambda: measure_start(setting, rounds=sizes.rounds))
    return found
