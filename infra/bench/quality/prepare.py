"""`nightjar bench prepare`: public sets, as their publishers give them, as files for `nightjar bench quality`."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from feature_repo.contracts.errors import DataError, nearest

SEEDS = 5
TEST_SHARE = 0.25
TEST_FROM = "2011-11-01"
SHOP_ZONE = "Europe/London"


def prepare(name: str, source: Path, folder: Path) -> list[Path]:
    """Write the files of a set into `folder`: the paths. Raises DataError naming the nearest set or what is missing."""
    if name not in SETS:
        raise DataError(f"no set {name!r}; there are {', '.join(SETS)}{nearest(name, SETS)}", field="set")
    if not source.exists():
        raise DataError(f"--data {source}: there is no such file or folder", field="--data")
    folder.mkdir(parents=True, exist_ok=True)
    return SETS[name](source, folder)


def _online_retail(source: Path, folder: Path) -> list[Path]:
    """`train.csv.gz` and `test.csv.gz` for events: lines of known customers that are no cancellation, with quantity and
    price above 0 and a stock code that starts with 5 digits; the test begins with November 2011, and has customers and
    products of the training only."""
    lines = pd.read_csv(_file(source, "online_retail.csv.gz"), dtype=str, keep_default_na=False, encoding="utf-8")
    wanted = ("InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID")
    for column in wanted:
        if column not in lines:
            raise DataError(f"{source} has no column {column!r}{nearest(column, lines.columns)}", field=column)
    good = (
        (lines["CustomerID"] != "")
        & ~lines["InvoiceNo"].str.startswith("C")
        & (pd.to_numeric(lines["Quantity"], errors="coerce") > 0)
        & (pd.to_numeric(lines["UnitPrice"], errors="coerce") > 0)
        & lines["StockCode"].str.match(r"^\d{5}")
    )
    lines = lines[good]
    events = pd.DataFrame(
        {
            "user": lines["CustomerID"].str.removesuffix(".0"),
            "item": lines["StockCode"],
            "event": "purchase",
            "time": _london(lines["InvoiceDate"]),
        }
    )
    is_train = (pd.to_datetime(lines["InvoiceDate"]) < pd.Timestamp(TEST_FROM)).to_numpy()
    train, test = events[is_train], events[~is_train]
    test = test[test["user"].isin(set(train["user"])) & test["item"].isin(set(train["item"]))]
    return [_write_csv(train, folder / "train.csv.gz"), _write_csv(test, folder / "test.csv.gz")]


def _london(column: pd.Series) -> pd.Series:
    zoned = pd.to_datetime(column).dt.tz_localize(
        SHOP_ZONE, ambiguous=np.zeros(len(column), bool), nonexistent="shift_forward"
    )
    return zoned.dt.tz_convert("UTC").dt.strftime("%Y-%m-%dT%H:%M:%SZ")


def _ml_100k(source: Path, folder: Path) -> list[Path]:
    """`train-<seed>.txt.gz`, `test-<seed>.txt.gz` for pairs, five seeds: of each user a random quarter of the ratings,
    whatever they are, is the test."""
    ratings = pd.read_csv(_file(source, "u.data.gz"), sep="\t", header=None, names=["user", "item", "rating", "time"])
    ratings = ratings.sort_values(["user", "item"], kind="stable").reset_index(drop=True)
    paths = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).random(len(ratings))
        rank = pd.Series(order).groupby(ratings["user"]).rank(method="first")
        size = ratings.groupby("user")["item"].transform("size")
        is_test = (rank <= (size * TEST_SHARE).round()).to_numpy()
        for part, rows in (("train", ratings[~is_test]), ("test", ratings[is_test])):
            text = "".join(
                f"{user} {' '.join(str(item) for item in items)}\n" for user, items in rows.groupby("user")["item"]
            )
            paths.append(_write(text, folder / f"{part}-{seed}.txt.gz"))
    return paths


SETS: Mapping[str, Callable[[Path, Path], list[Path]]] = {"online-retail": _online_retail, "ml-100k": _ml_100k}


def _file(source: Path, name: str) -> Path:
    """The file itself, or the one of this name (packed or not) in the folder."""
    if source.is_file():
        return source
    for candidate in (source / name, source / name.removesuffix(".gz")):
        if candidate.is_file():
            return candidate
    raise DataError(f"--data {source}: neither {name} nor {name.removesuffix('.gz')} is in it", field="--data")


def _write_csv(frame: pd.DataFrame, path: Path) -> Path:
    text = io.StringIO()
    frame.to_csv(text, index=False, lineterminator="\n")
    return _write(text.getvalue(), path)


def _write(text: str, path: Path) -> Path:
    """The same text is the same file: no time stamp inside."""
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        file.write(text.encode("utf-8"))
    return path
