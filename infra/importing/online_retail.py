"""`nightjar import online-retail`: the Online Retail file of the UCI repository (data set 352, CC BY 4.0) as a shop.

One line is one item of one invoice; InvoiceDate is the wall clock of the shop in London.

    event_id     <invoice>:<line number within the invoice, in file order, from 1>; session_id is the invoice
    event_type   refund when the invoice starts with C (its negative quantity becomes positive), else purchase
    subject      the customer, or anonymous_id `invoice-<invoice>` when the line has none
    quarantined  a line that is no refund with quantity <= 0 (quantity_not_positive) or else price <= 0
                 (price_not_positive); any line that breaks the common rules
    duplicates   lines equal in every column are kept (each has its own line number) and counted

Stock codes are taken as they are written ("85123A" and "85123a" are two items). The catalogue is derived: `items_of`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import Reason, Rejection
from feature_repo.contracts.times import require_utc
from infra.importing.checking import EventChecker, Tally
from infra.importing.events import write_events
from infra.importing.lease import writer_lease
from infra.importing.mapping import ColumnMap
from infra.importing.reading import Batch, ImportFile, Unreadable, column_names, find_files, read_batches
from infra.importing.report import ImportReport, Progress
from infra.importing.tables import bronze_schema, upsert, users_who_refuse_storage

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
SHOP_ZONE = "Europe/London"
CURRENCY = "GBP"
SMALLEST_CATEGORY = 20
OTHER = "Other"

_IS_GOODS = r"^\d{5}"
_WHOLE = re.compile(r"-?\d{1,9}")
# Colours, materials, sizes, patterns, places: what a title ends with when it does not end with its noun.
_NO_NOUNS = frozenset(
    """pink blue red white black green silver gold ivory cream purple yellow orange turquoise natural clear amber
    glass metal zinc wood wooden ceramic enamel felt paper wicker crystal diamante acrylic pearl shell
    small large medium mini jumbo size round square tall assorted colour colours asst set pack pcs piece
    design designs style retrospot polkadot paisley spaceboy vintage retro classic antique regency baroque gingham
    striped stripes spot floral christmas easter birthday garden home kitchen london french english union
    and with the for from new love sweet""".split()  # noqa: SIM905
)


def import_online_retail(
    path: str | Path, env: Environment, *, received_at: datetime | None = None, progress: Progress | None = None
) -> tuple[ImportReport, ImportReport, ImportReport]:
    """Import the file (.csv or .csv.gz): (users, items, events).

    Raises DataError, before writing, when it cannot be read or lacks one of COLUMNS.
    """
    file = _the_file(path)
    batch = _whole(file)
    lines = _lines(batch)
    events, rejections = _events(lines)
    refusing = users_who_refuse_storage(env)
    moment = require_utc(received_at or datetime.now(UTC), "received_at")
    checker = EventChecker(ColumnMap(), refusing, moment, shop_rule=lambda _: rejections)
    tally = Tally()
    canonical = Batch(file, batch.positions, batch.raw, events, is_text=True, unreadable=batch.unreadable)
    good = checker.check(canonical, tally)
    if progress is not None:
        progress(tally.read, file.source)

    accepted = np.searchsorted(batch.positions, good["source_position"].to_numpy())
    items = items_of(lines.iloc[accepted], lines)
    users = users_of(lines[~lines["CustomerID"].isin(refusing.to_pylist())])
    user_rows = _rows(users, "bronze.users", file.source)
    with writer_lease(env):
        upsert(env, "bronze.users", "user_id", user_rows, update=("region", "created_at", "source"))
        upsert(env, "bronze.items", "item_id", _rows(items, "bronze.items", file.source))
        report = write_events(env, [file.source], tally, [good])
    notes = {
        "lines without customer (anonymous)": int((lines["CustomerID"] == "").sum()),
        "lines of cancelled invoices (refund)": int(lines["is_refund"].sum()),
        "exact duplicate lines (kept)": int(lines.duplicated(list(COLUMNS)).sum()),
    }
    hidden = {
        "no goods (hidden)": int(items["is_hidden"].sum()),
        "category Other": int((items["category"] == OTHER).sum()),
    }
    return (
        ImportReport("users", (file.source,), len(users), len(users), rows_written=len(users)),
        ImportReport("items", (file.source,), len(items), len(items), rows_written=len(items), notes=hidden),
        replace(report, notes=notes),
    )


def _the_file(path: str | Path) -> ImportFile:
    files = find_files(path)
    if len(files) != 1 or files[0].form != ".csv":
        raise DataError(f"online-retail is one .csv or .csv.gz file, got {path}")
    names = column_names(files[0])
    for column in COLUMNS:
        if column not in names:
            hint = nearest(column, names)
            raise DataError(
                f"{files[0].source} has no column {column!r}; it has {', '.join(names)}{hint}", field=column
            )
    return files[0]


def _whole(file: ImportFile) -> Batch:
    """The file as one batch: invoices run across batches."""
    batches = list(read_batches(file))
    if not batches:
        raise DataError(f"{file.source} has a header but no lines")
    starts = np.cumsum([0, *(len(b.positions) for b in batches)])

    def raw(row: int) -> bytes:
        which = int(np.searchsorted(starts, row, side="right")) - 1
        return batches[which].raw(row - int(starts[which]))

    unreadable: dict[int, Unreadable] = {}
    for start, batch in zip(starts, batches, strict=False):
        unreadable |= {int(start) + row: problem for row, problem in (batch.unreadable or {}).items()}
    tables = [batch.columns for batch in batches if batch.columns is not None]
    positions = np.concatenate([batch.positions for batch in batches])
    return Batch(file, positions, raw, pa.concat_tables(tables), is_text=True, unreadable=unreadable)


def _lines(batch: Batch) -> pd.DataFrame:
    """The columns as stripped text ("" for none) plus what is read from them; row = line of the batch.

    Adds: number (line within the invoice), is_refund, quantity and price (NaN when no number), moment (UTC, NaT when
    no time). In the hour that comes twice in autumn the later one (winter time) is meant; the hour that spring skips
    counts as the next one.
    """
    assert batch.columns is not None
    columns = {n: pc.fill_null(pc.utf8_trim_whitespace(batch.columns[n]), "") for n in COLUMNS}
    lines = pa.table(columns).to_pandas()
    lines["CustomerID"] = lines["CustomerID"].str.removesuffix(".0")
    lines["number"] = lines.groupby("InvoiceNo", sort=False).cumcount() + 1
    lines["is_refund"] = lines["InvoiceNo"].str.startswith("C")
    lines["quantity"] = pd.to_numeric(lines["Quantity"].where(lines["Quantity"].str.fullmatch(_WHOLE)), errors="coerce")
    lines["price"] = pd.to_numeric(lines["UnitPrice"], errors="coerce")
    local = pd.to_datetime(lines["InvoiceDate"], format="ISO8601", errors="coerce")
    american = pd.to_datetime(lines["InvoiceDate"].where(local.isna()), format="%m/%d/%Y %H:%M", errors="coerce")
    zoned = local.fillna(american).dt.tz_localize(
        SHOP_ZONE, ambiguous=np.zeros(len(lines), bool), nonexistent="shift_forward"
    )
    lines["moment"] = zoned.dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    return lines


def _events(lines: pd.DataFrame) -> tuple[pa.Table, Mapping[int, Rejection]]:
    """(canonical event columns of every line, which lines the rules of this shop refuse)."""
    quantity = lines["quantity"].abs().astype("Int64").astype("string").where(lines["is_refund"], lines["Quantity"])
    customer = lines["CustomerID"].where(lines["CustomerID"] != "")
    anonymous = ("invoice-" + lines["InvoiceNo"]).where(customer.isna())
    columns = {
        "event_id": lines["InvoiceNo"] + ":" + lines["number"].astype(str),
        "event_type": pd.Series(np.where(lines["is_refund"], "refund", "purchase")),
        "user_id": customer,
        "anonymous_id": anonymous,
        "session_id": lines["InvoiceNo"],
        "item_id": _absent(lines["StockCode"]),
        "quantity": _absent(quantity),
        "price": _absent(lines["UnitPrice"]),
        "currency": pd.Series([CURRENCY] * len(lines)),
    }
    table = {name: pa.array(column, pa.string(), from_pandas=True) for name, column in columns.items()}
    table["timestamp"] = pa.array(lines["moment"], pa.timestamp("us", "UTC"), from_pandas=True)
    return pa.table(table), dict(_rejections(lines))


def _absent(column: pd.Series) -> pd.Series:
    return column.where(column != "")


def _rejections(lines: pd.DataFrame) -> Iterator[tuple[int, Rejection]]:
    """Rows that this shop's own rules refuse; a row that breaks several gets the last one yielded."""
    is_sale = ~lines["is_refund"]
    for row in np.flatnonzero(is_sale & (lines["price"] <= 0)):
        seen = lines["UnitPrice"].iat[row]
        yield int(row), Rejection(Reason.PRICE_NOT_POSITIVE, "UnitPrice", f"a sale needs a price > 0, got {seen}")
    for row in np.flatnonzero((lines["quantity"] <= 0) & (is_sale | (lines["quantity"] == 0))):
        seen = lines["Quantity"].iat[row]
        detail = f"a line that cancels nothing needs a quantity > 0, got {seen}"
        yield int(row), Rejection(Reason.QUANTITY_NOT_POSITIVE, "Quantity", detail)
    for row in np.flatnonzero(lines["moment"].isna()):
        seen = lines["InvoiceDate"].iat[row]
        detail = f"not a time: {seen!r}; expected such as 2010-12-01 08:26:00"
        yield int(row), Rejection(Reason.INVALID_TIMESTAMP, "InvoiceDate", detail)
    for row in np.flatnonzero(lines["InvoiceNo"] == ""):
        yield int(row), Rejection(Reason.MISSING_EVENT_ID, "InvoiceNo", "a line needs an invoice number")


def items_of(accepted: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """The derived catalogue. Grain: one stock code with an accepted line, sorted.

    title       the most frequent description of the code in all lines (ties by alphabet, blanks ignored)
    price       median unit price of its sales (of its refunds when it was never sold)
    created_at  its first sale (or first refund)
    category    `categories_of` the titles
    is_hidden   codes that do not start with five digits (POST, D, M, BANK CHARGES, gift vouchers ...) are no goods
    """
    described = lines.rename(columns={"Description": "title"})
    described = described[described["title"] != ""]
    counted = described.groupby(["StockCode", "title"]).size().reset_index(name="count")
    counted = counted.sort_values(["StockCode", "count", "title"], ascending=[True, False, True])
    titles = counted.drop_duplicates("StockCode").set_index("StockCode")["title"]

    rows = accepted[accepted["StockCode"] != ""].sort_values("is_refund", kind="stable")
    was_sold = rows.groupby("StockCode")["is_refund"].transform("min").eq(rows["is_refund"])
    by_code = rows[was_sold].groupby("StockCode")  # sales, or refunds where there is no sale
    items = pd.DataFrame({"price": by_code["price"].median(), "created_at": by_code["moment"].min()})
    items["title"] = titles.reindex(items.index)
    items["is_hidden"] = ~items.index.str.contains(_IS_GOODS)
    items["category"] = categories_of(items["title"].where(~items["is_hidden"]))
    items["currency"], items["availability"] = CURRENCY, "IN_STOCK"
    return items.rename_axis("item_id").reset_index()


def categories_of(titles: pd.Series) -> pd.Series:
    """A coarse category from each title, by one rule: its last word that can be a noun and names a big enough category.

    Words are letters only, at least three, without plural -s; colours, materials, sizes and patterns (_NO_NOUNS) are
    no nouns. "WHITE HANGING HEART T-LIGHT HOLDER" -> "Holder", "LUNCH BAG RED RETROSPOT" -> "Bag". The words that name
    the fewest titles are passed over, again and again until each names SMALLEST_CATEGORY; no word left: OTHER.
    """
    words = [_nouns(title) if isinstance(title, str) else [] for title in titles]
    allowed = {word for some in words for word in some}
    while True:
        last = [next((word for word in reversed(some) if word in allowed), None) for some in words]
        sizes = Counter(word for word in last if word is not None)
        smallest = min((sizes[word] for word in allowed), default=SMALLEST_CATEGORY)
        if smallest >= SMALLEST_CATEGORY:
            return pd.Series([OTHER if word is None else word.capitalize() for word in last], index=titles.index)
        allowed = {word for word in allowed if sizes[word] > smallest}


def _nouns(title: str) -> list[str]:
    words = [w for w in re.findall(r"[a-z]+", title.lower()) if len(w) >= 3 and w not in _NO_NOUNS]
    return [_singular(word) for word in words]


def _singular(word: str) -> str:
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def users_of(lines: pd.DataFrame) -> pd.DataFrame:
    """Every customer, sorted: region = their most frequent Country (ties by alphabet), created_at = first line."""
    known = lines[lines["CustomerID"] != ""]
    counted = known.groupby(["CustomerID", "Country"]).size().reset_index(name="count")
    counted = counted.sort_values(["CustomerID", "count", "Country"], ascending=[True, False, True])
    regions = counted.drop_duplicates("CustomerID").set_index("CustomerID")["Country"]
    users = pd.DataFrame({"region": regions, "created_at": known.groupby("CustomerID")["moment"].min()})
    return users.rename_axis("user_id").reset_index()


def _rows(frame: pd.DataFrame, name: str, source: str) -> pa.Table:
    """The frame with all columns of a bronze table; the ones it lacks are null."""
    schema = bronze_schema(name)
    arrays = [
        pa.array(frame[f.name], f.type, from_pandas=True)
        if f.name in frame
        else pa.array([source if f.name == "source" else None] * len(frame), f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
