"""Whether an answer costs the same in a large shop: a million people, or 200,000 items, beside the usual ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from infra.bench.report import Figure, figure
from infra.bench.serving.limits.open_loop import words_of
from infra.bench.serving.limits.setting import Cost, Setting

MOST_RATIO = 1.10
FLAT_BODIES = 60_000


def measure_flatness(
    setting: Setting, *, people: int, items: int, rounds: int
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures `cpu_us_people` and `cpu_us_items`, against the shop of the mix, measured in turns; and of Redis."""
    with ExitStack() as stack:
        sides = {}
        for name, size in (("usual", {}), ("people", {"people": people}), ("items", {"items": items})):
            shop = setting.publish(stack, name, **size)
            served = setting.serve(stack, shop)
            requests = setting.write_mix(shop, name, FLAT_BODIES)
            setting.measure(served, requests, seconds=max(1.0, setting.seconds))  # warm
            sides[name] = (served, requests)
        found: dict[str, list[Cost]] = {name: [] for name in sides}
        for turn in range(rounds):
            for name, (served, requests) in list(sides.items())[:: 1 if turn % 2 == 0 else -1]:
                found[name].append(setting.measure(served, requests))
                setting.say(f"round {turn + 1}, {name}: {words_of(found[name][-1])}")
    return report_of(found, people, items)


def report_of(found: Mapping[str, Sequence[Cost]], people: int, items: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """The figures, and `flat_people`, `flat_items`, `flat_errors`, `missed_bars`."""
    figures = {}
    missed = []
    for name, size in (("people", people), ("items", items)):
        ours, base = found[name], found["usual"]
        cost = figure("us", [one.cpu_us for one in ours], baseline=[one.cpu_us for one in base])
        figures[f"cpu_us_{name}"] = cost
        figures[f"redis_cpu_us_{name}"] = figure(
            "us", [one.redis_cpu_us for one in ours], baseline=[one.redis_cpu_us for one in base]
        )
        if (cost["ratio"] or 0.0) > MOST_RATIO:
            missed.append(f"flat: {cost['ratio']:.3g} times the processor time with {size:,} {name}")
    errors = sum(one.sent.errors for costs in found.values() for one in costs)
    degraded = sum(one.sent.degraded for costs in found.values() for one in costs)
    missed += [f"flat: {errors} errors"] if errors else []
    more = {"flat_people": people, "flat_items": items, "flat_errors": errors, "flat_degraded": degraded}
    return figures, {**more, "missed_bars": missed}
