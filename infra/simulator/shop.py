"""Writes a simulated shop as a folder that `nightjar import shop` takes.

    shop.json                 the parameters, and true counts that an import must arrive at
    items.parquet             canonical item columns
    users.parquet             canonical user columns
    events/YYYY-MM-DD.parquet canonical event columns, in order of arrival; the day is the day of arrival (UTC)
    events/malformed.jsonl    lines that break a rule
    truth.npz                 what people really like (`infra.simulator.truth`); no importer reads it

Memory is bounded by a few days of traffic, whatever the number of events.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError
from infra.simulator.catalogue import Catalogue, items_table, make_catalogue
from infra.simulator.config import ShopConfig
from infra.simulator.malformed import malformed_lines
from infra.simulator.people import People, make_people, users_table
from infra.simulator.traffic import (
    BOT,
    CART,
    DAY_MS,
    ONE_OFF,
    PURCHASE,
    REFUND,
    TYPES,
    VIEW,
    Deliveries,
    join,
    simulate_day,
)
from infra.simulator.truth import TRUTH_FILE, Truth

SHOP_FILE = "shop.json"
EVENTS_FOLDER = "events"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
MALFORMED_FILE = "malformed.jsonl"


@dataclass(frozen=True)
class ShopSummary:
    """What was written. Lines include repeated deliveries and malformed lines; `store=false` lines are `not_stored`.

    accepted + not_stored + sum(malformed) = lines: what importing the folder must report.
    repeated_accepted  accepted lines whose event_id had been delivered before
    """

    lines: int
    accepted: int
    not_stored: int
    malformed: dict[str, int]
    repeated: int
    repeated_accepted: int
    late: int
    bot_lines: int
    bots: list[str]
    anonymous_lines: int
    by_type: dict[str, int]
    items: int
    users: int


def simulate_shop(
    config: ShopConfig, folder: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> ShopSummary:
    """Write the shop of `config` to `folder`, which must be new, empty, or an older simulated shop (then replaced).

    `progress` is told (days done, days). Raises DataError, before writing, when the folder holds something else.
    """
    out = _make_room(Path(folder))
    rng = np.random.default_rng([config.seed, 0])
    catalogue = make_catalogue(config, rng)
    people = make_people(config, catalogue, rng)
    lines, reasons = malformed_lines(config, catalogue, people, rng)

    pq.write_table(items_table(config, catalogue), out / ITEMS_FILE)
    users = users_table(config, people)
    pq.write_table(users, out / USERS_FILE)
    Truth(people.user_ids, catalogue.item_ids, people.factors, catalogue.factors).save(out)
    (out / EVENTS_FOLDER / MALFORMED_FILE).write_bytes(b"".join(line + b"\n" for line in lines))

    counts = _write_days(config, catalogue, people, out / EVENTS_FOLDER, progress)
    summary = ShopSummary(
        lines=counts["lines"] + len(lines),
        accepted=counts["lines"] - counts["not_stored"],
        not_stored=counts["not_stored"],
        malformed=dict(sorted(reasons.items())),
        repeated=counts["repeated"],
        repeated_accepted=counts["repeated_accepted"],
        late=counts["late"],
        bot_lines=counts["bot_lines"],
        bots=[bot_id for bot_id, _ in people.bot_ids],
        anonymous_lines=counts["anonymous_lines"],
        by_type={str(kind): counts[str(kind)] for kind in TYPES},
        items=config.item_count,
        users=users.num_rows,
    )
    document = {"config": config.to_mapping(), "counts": asdict(summary)}
    (out / SHOP_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")  # last: the folder is whole
    return summary


def load_shop(folder: str | Path) -> tuple[ShopConfig, ShopSummary]:
    """What `shop.json` says. Raises DataError when the folder is no simulated shop."""
    path = Path(folder) / SHOP_FILE
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return ShopConfig.from_mapping(document["config"]), ShopSummary(**document["counts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no simulated shop: {SHOP_FILE} cannot be read ({error})") from error


def _make_room(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a simulated shop is a folder")
    if out.is_dir() and any(out.iterdir()):
        known = {SHOP_FILE, ITEMS_FILE, USERS_FILE, TRUTH_FILE, EVENTS_FOLDER}
        foreign = sorted(p.name for p in out.iterdir() if p.name not in known)
        if foreign or not (out / SHOP_FILE).is_file():
            raise DataError(f"{out} is not empty and no simulated shop (it holds {foreign or 'no ' + SHOP_FILE})")
        (out / SHOP_FILE).unlink()
        shutil.rmtree(out / EVENTS_FOLDER, ignore_errors=True)
    (out / EVENTS_FOLDER).mkdir(parents=True)
    return out


def _write_days(
    config: ShopConfig, catalogue: Catalogue, people: People, folder: Path, progress: Callable[[int, int], None] | None
) -> Counter[str]:
    """One file a day of arrival. What arrives after the last day arrives on it: nothing is lost."""
    counts: Counter[str] = Counter()
    waiting: list[Deliveries] = []
    for day in range(config.days):
        lines = join([*waiting, simulate_day(config, catalogue, people, day)])
        is_due = (lines.delivered < (day + 1) * DAY_MS) | (day == config.days - 1)
        due = lines.take(is_due)
        waiting = [lines.take(~is_due)]
        due = due.take(np.lexsort((due.serial, due.day, due.delivered)))
        name = (config.start_day + timedelta(days=day)).isoformat()
        pq.write_table(events_table(config, catalogue, people, due), folder / f"{name}.parquet")
        counts.update(_count(people, due))
        if progress is not None:
            progress(day + 1, config.days)
    return counts


def _count(people: People, lines: Deliveries) -> dict[str, int]:
    knows_user = lines.user >= 0
    user_refuses = np.zeros(len(lines), bool)
    user_refuses[knows_user] = people.consent_store[lines.user[knows_user]] == 0
    is_refused = (user_refuses & lines.is_logged_in) | (lines.said_no == 1)
    is_accountless_bot = (lines.user == BOT) & ~_is_account_bot(people, lines)
    return {
        "lines": len(lines),
        "not_stored": int(is_refused.sum()),
        "repeated": int(lines.is_repeated.sum()),
        "repeated_accepted": int((lines.is_repeated & ~is_refused).sum()),
        "late": int((lines.delivered - lines.at >= 7_200_000).sum()),
        "bot_lines": int((lines.user == BOT).sum()),
        "anonymous_lines": int((is_accountless_bot | ((lines.user != BOT) & ~lines.is_logged_in)).sum()),
        **{str(kind): int((lines.kind == code).sum()) for code, kind in enumerate(TYPES)},
    }


def _is_account_bot(people: People, lines: Deliveries) -> NDArray[np.bool_]:
    has_account = np.array([account for _, account in people.bot_ids] or [False])
    return (lines.user == BOT) & has_account[np.where(lines.user == BOT, lines.subject, 0)]


def events_table(config: ShopConfig, catalogue: Catalogue, people: People, lines: Deliveries) -> pa.Table:
    """Event lines with canonical columns; ids are made here, the simulation itself knows rows only."""
    user_ids = pa.array(people.user_ids)
    devices = pc.binary_join_element_wise("d", pc.utf8_slice_codeunits(user_ids, 1), "")
    bots = pa.array([bot_id for bot_id, _ in people.bot_ids], pa.string())
    person = pa.array(lines.user, mask=lines.user < 0)
    bot = pa.array(lines.subject, mask=lines.user != BOT)
    is_account_bot = _is_account_bot(people, lines)
    is_bot = lines.user == BOT

    user_id = pc.if_else(pa.array(lines.is_logged_in & ~is_bot), user_ids.take(person), pa.scalar(None, pa.string()))
    user_id = pc.if_else(pa.array(is_account_bot), bots.take(bot), user_id)
    visitor = _numbered("v", lines.day, lines.subject)
    anonymous_id = pc.if_else(pa.array(lines.user == ONE_OFF), visitor, devices.take(person))
    anonymous_id = pc.if_else(pa.array(lines.sends_device), anonymous_id, pa.scalar(None, pa.string()))
    anonymous_id = pc.if_else(pa.array(is_bot & ~is_account_bot), bots.take(bot), anonymous_id)

    item = np.where(lines.item < 0, 0, lines.item)
    has_price = np.isin(lines.kind, (VIEW, CART, PURCHASE, REFUND))
    price = catalogue.prices[item]
    has_quantity = lines.quantity > 0
    start = np.datetime64(config.start_day, "D").astype("datetime64[us]")
    timestamp = pa.array(start + (lines.at * 1_000).astype("timedelta64[us]")).cast(pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "event_id": _numbered("e", lines.day, lines.serial),
            "event_type": pa.array([str(t) for t in TYPES]).take(pa.array(lines.kind)),
            "user_id": user_id,
            "anonymous_id": anonymous_id,
            "session_id": pc.if_else(
                pa.array(lines.session >= 0), _numbered("s", lines.day, lines.session), pa.scalar(None, pa.string())
            ),
            "item_id": pa.array(catalogue.item_ids).take(pa.array(lines.item, mask=lines.item < 0)),
            "timestamp": timestamp,
            "quantity": pa.array(lines.quantity, mask=~has_quantity),
            "price": pa.array(price, mask=~has_price),
            "value": pa.array(np.round(price * lines.quantity, 2), mask=lines.kind != PURCHASE),
            "currency": pc.if_else(pa.array(has_price), "EUR", pa.scalar(None, pa.string())),
            "channel": pc.if_else(pa.array(lines.session % 3 == 0), "app", "web"),
            **{
                f"consent_{purpose}": pa.array(np.zeros(len(lines), bool), mask=lines.said_no != code)
                for code, purpose in enumerate(("store", "train", "personalize"), start=1)
            },
        }
    )


def _numbered(prefix: str, day: NDArray[np.int32], number: NDArray[np.int32]) -> pa.Array:
    """`e012-0000345`: sorts by day, then number."""
    days = pc.utf8_lpad(pa.array(day).cast(pa.string()), 3, "0")
    numbers = pc.utf8_lpad(pa.array(np.maximum(number, 0)).cast(pa.string()), 7, "0")
    return pc.binary_join_element_wise(pc.binary_join_element_wise(prefix, days, ""), numbers, "-")
