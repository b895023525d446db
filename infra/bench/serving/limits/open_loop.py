"""Answers at a fixed rate: of the mix, of `/v1/rank` with 200 items and of `/v1/pages` with five placements.

Requests leave when they are due; every time is counted from that moment. Rates rise; those behind one at which the
server fell behind are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from feature_repo.contracts.errors import DependencyError
from infra.bench.report import Figure, figure
from infra.bench.sender import Sent
from infra.bench.serving.limits.setting import Cost, Setting, Shop
from infra.bench.serving.throughput import BODIES, Served

MOST_P99_MS = {"open_loop": 3.0, "rank": 5.0, "pages": 5.0}
LEAST_RATE = {"open_loop": 10_000.0, "rank": 2_000.0, "pages": 2_000.0}
RANKED_ITEMS = 200
PLACEMENTS: Sequence[Mapping[str, Any]] = (
    {"kind": "continue", "num_results": 6},
    {"kind": "recommendations", "placement": "home", "num_results": 12},
    {"kind": "similar", "num_results": 12},
    {"kind": "trending", "num_results": 12},
    {"kind": "new", "num_results": 12},
)
_BEHIND_MS = 1_000.0
_LIST_BODIES = 2_000


def measure_open_loop(
    setting: Setting, *, kinds: Sequence[str], rates: Sequence[float], rounds: int, workers: int
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures `<kind>_cpu_us` (a closed loop) and, for each rate, `<kind>_<rate>_p50_ms` and `_p99_ms`; and what else
    is to be told: `<kind>_rates`, `missed_bars`. `workers` have all cores, with the generator and Redis."""
    with ExitStack() as stack:
        shop = setting.publish(stack, "steady")
        served = setting.serve(stack, shop, workers=workers, is_pinned=False)
        figures: dict[str, Figure] = {}
        more: dict[str, Any] = {"missed_bars": []}
        for kind in kinds:
            requests = write_requests_of(kind, setting, shop, served)
            setting.measure(served, requests, seconds=1)  # warm
            closed = [setting.measure(served, requests) for _ in range(rounds)]
            figures[f"{kind}_cpu_us"] = figure("us", [cost.cpu_us for cost in closed])
            figures[f"{kind}_per_second"] = figure("1/s", [one.sent.per_second for one in closed])
            setting.say(f"{kind}, closed loop: {words_of(closed[-1])}")
            steps = {}
            for rate in sorted(rates):
                costs = [setting.measure(served, requests, rate=rate) for _ in range(rounds)]
                for cost in costs:
                    setting.say(f"{kind}, {rate:g}/s: {words_of(cost)}")
                steps[rate] = [cost.sent for cost in costs]
                for name in ("p50", "p99"):
                    values = [getattr(sent.ok_due, name) for sent in steps[rate]]
                    figures[f"{kind}_{rate:g}_{name}_ms"] = figure("ms", values)
                if all(is_behind(sent) for sent in steps[rate]):
                    break
            more[f"{kind}_rates"] = [step_of(rate, some) for rate, some in steps.items()]
            more["missed_bars"] += missed(kind, more[f"{kind}_rates"])
    return figures, more


def is_behind(sent: Sent) -> bool:
    """Whether the server did not keep up: half of the requests waited over a second, or one of a hundred failed."""
    return sent.ok_due.p50 > _BEHIND_MS or sent.errors > 0.01 * sent.sent


def step_of(rate: float, some: Sequence[Sent]) -> dict[str, Any]:
    """One rate in the report; of several rounds the medians of their times, and the sums of what went wrong."""
    return {
        "rate": rate,
        "sent": sum(sent.sent for sent in some),
        "errors": sum(sent.errors for sent in some),
        "degraded": sum(sent.degraded for sent in some),
        "p50_ms": figure("ms", [sent.ok_due.p50 for sent in some])["median"],
        "p99_ms": figure("ms", [sent.ok_due.p99 for sent in some])["median"],
        "p999_ms": figure("ms", [sent.ok_due.p999 for sent in some])["median"],
        "lag_p99_ms": figure("ms", [sent.lag.p99 for sent in some])["median"],
        "generator_priority": some[0].priority,
        "void": sum(sent.is_void for sent in some) > len(some) / 2,
    }


def missed(kind: str, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps a kind from its bar: the 99th percentile at the rate asked for, on no void measurement."""
    asked = [step for step in steps if step["rate"] >= LEAST_RATE[kind]]
    if not asked:
        return [f"{kind}: {LEAST_RATE[kind]:g} requests a second were not reached or not tried"]
    step = asked[0]
    found = []
    if step["errors"]:
        found.append(f"{kind}: {step['errors']} errors at {step['rate']:g}/s")
    if step["void"]:
        found.append(f"{kind}: void, the generator was {step['lag_p99_ms']:.3g} ms late at {step['rate']:g}/s")
    elif step["p99_ms"] >= MOST_P99_MS[kind]:
        found.append(f"{kind}: p99 of {step['p99_ms']:.3g} ms at {step['rate']:g}/s, asked for: {MOST_P99_MS[kind]:g}")
    return found


def write_requests_of(kind: str, setting: Setting, shop: Shop, served: Served) -> Path:
    """The file of a kind's requests. Raises DependencyError when the first answer is not what it should be."""
    if kind == "open_loop":
        return setting.write_mix(shop, kind, BODIES)
    path, bodies = ("/v1/rank", rank_bodies(shop)) if kind == "rank" else ("/v1/pages/home", page_bodies(shop))
    answer = served.post(path, bodies[0])
    found = len(answer["items"]) if kind == "rank" else len(answer["placements"])
    expected = RANKED_ITEMS if kind == "rank" else len(PLACEMENTS)
    if found != expected or answer["degraded"]:
        raise DependencyError(f"{path} gave {found} of {expected}, degraded: {answer['degraded']}")
    return setting.write(shop, kind, path, bodies)


def rank_bodies(shop: Shop) -> list[dict[str, Any]]:
    """Known users in a session, each with 200 items around their taste: about a quarter is on their list."""
    people, items = shop.shop.people, shop.shop.items
    return [
        {
            "user_id": f"u{person}", "session_id": f"s{person}",
            "item_ids": [f"i{(person * 37 + 2 * at) % items}" for at in range(RANKED_ITEMS)],
        }
        for person in (number * 7919 % people for number in range(_LIST_BODIES))
    ]  # fmt: skip


def page_bodies(shop: Shop) -> list[dict[str, Any]]:
    """Known users in a session, each on the page of an item."""
    people, items = shop.shop.people, shop.shop.items
    return [
        {
            "user_id": f"u{person}", "session_id": f"s{person}", "item_id": f"i{person * 37 % items}",
            "placements": list(PLACEMENTS),
        }
        for person in (number * 7919 % people for number in range(_LIST_BODIES))
    ]  # fmt: skip


def words_of(cost: Cost) -> str:
    """One measurement on one line."""
    sent = cost.sent
    wrong = f", {sent.errors} errors" if sent.errors else ""
    wrong += f", {sent.degraded} degraded" if sent.degraded else ""
    wrong += f", void: lag p99 {sent.lag.p99:.2f} ms" if sent.is_void else ""
    times = f"p50 {sent.ok_due.p50:.2f}, p99 {sent.ok_due.p99:.2f} ms"
    return f"{sent.per_second:,.0f}/s, {cost.cpu_us:.0f} us, {times}{wrong}"
