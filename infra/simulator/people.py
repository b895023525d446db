"""The people of a simulated shop: tastes, habits, consent, devices; and the crawlers among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.simulator.catalogue import BASE_UTILITY, TASTE_SIZE, Catalogue, days_to_timestamps, numbered_ids
from infra.simulator.config import ShopConfig, burst_count

REGIONS = ("DE", "FR", "NL", "PL", "SE", "UK")
_TASTE_GROUPS = 12


@dataclass(frozen=True)
class People:
    """Arrays over users (row = user). `factors` times an item's factors is the utility.

    consent_*  int8: 1 given, 0 refused, -1 never asked
    joined_on  day of the shop's history, negative when before it
    bot_ids    subjects that are crawlers: (id, has an account)
    """

    user_ids: NDArray[np.str_]
    factors: NDArray[np.float32]
    activity: NDArray[np.float64]
    joined_on: NDArray[np.int32]
    regions: NDArray[np.int32]
    consent_store: NDArray[np.int8]
    consent_train: NDArray[np.int8]
    consent_personalize: NDArray[np.int8]
    bot_ids: list[tuple[str, bool]]


def make_people(config: ShopConfig, catalogue: Catalogue, rng: np.random.Generator) -> People:
    """Each user mixes two or three of twelve taste groups, leans with their region, and has whims of their own."""
    count = config.user_count
    centre = catalogue.category_factors.mean(axis=0)
    # A group loves a few categories: its taste is the sum of their styles, so categories and items both follow it.
    loved = rng.dirichlet(np.full(len(catalogue.category_names), 0.08), _TASTE_GROUPS)
    group_taste = loved @ (catalogue.category_factors - centre)
    group_taste /= np.linalg.norm(group_taste, axis=1, keepdims=True)
    mixture = rng.dirichlet(np.full(_TASTE_GROUPS, 0.1), count)
    regions = rng.choice(len(REGIONS), count, p=[0.30, 0.20, 0.12, 0.13, 0.10, 0.15])
    region_taste = rng.normal(size=(len(REGIONS), TASTE_SIZE)) / np.sqrt(TASTE_SIZE)
    own_taste = rng.normal(size=(count, TASTE_SIZE)) / np.sqrt(TASTE_SIZE)
    taste = mixture @ group_taste + 0.2 * region_taste[regions] + 0.15 * own_taste
    sensitivity = 0.5 * rng.gamma(2.0, 0.5, count)
    factors = np.column_stack([1.6 * taste, np.ones(count), -sensitivity, np.full(count, BASE_UTILITY)])

    joined = np.where(rng.random(count) < 0.25, rng.integers(0, config.days, count), -rng.integers(1, 365, count))
    joined[: max(1, count // 20)] = -1  # somebody is there on the first day
    lot = rng.random(count)
    has_answered = rng.random(count) < 0.5
    given = np.where(has_answered, 1, -1)
    bursts = burst_count(config)
    bot_count = max(min(3, bursts), bursts // 5)
    width = len(str(max(count, 9999)))
    bots = [(f"u{count + n:0{width}d}", True) if n % 3 == 0 else (f"d9{n:07d}", False) for n in range(1, bot_count + 1)]
    return People(
        user_ids=numbered_ids("u", count),
        factors=factors.astype(np.float32),
        activity=rng.lognormal(0.0, 1.1, count),
        joined_on=joined.astype(np.int32),
        regions=regions.astype(np.int32),
        consent_store=np.where(lot < 0.005, 0, given).astype(np.int8),
        consent_train=np.where((lot >= 0.005) & (lot < 0.02), 0, given).astype(np.int8),
        consent_personalize=np.where((lot >= 0.02) & (lot < 0.035), 0, given).astype(np.int8),
        bot_ids=bots,
    )


def consent_array(consent: NDArray[np.int8]) -> pa.Array:
    """1, 0, -1 as true, false, null."""
    return pa.array(consent == 1, mask=consent < 0)


def users_table(config: ShopConfig, people: People) -> pa.Table:
    """users.parquet: the people, then the crawlers that have an account."""
    persons = pa.table(
        {
            "user_id": pa.array(people.user_ids),
            "region": np.array(REGIONS)[people.regions],
            "consent_store": consent_array(people.consent_store),
            "consent_train": consent_array(people.consent_train),
            "consent_personalize": consent_array(people.consent_personalize),
            "created_at": days_to_timestamps(config, people.joined_on, 0),
        }
    )
    accounts = [bot_id for bot_id, has_account in people.bot_ids if has_account]
    crawlers = pa.table(
        {
            "user_id": pa.array(accounts, pa.string()),
            "region": pa.array(["DE"] * len(accounts), pa.string()),
            "created_at": days_to_timestamps(config, np.full(len(accounts), -1, np.int32), 0),
        }
    )
    return pa.concat_tables([persons, crawlers], promote_options="default")
