"""`nightjar repro` before it runs anything: what was read is linked as it was, or the words say why it cannot be."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.run import EVALUATION_FILE, HASHES_FILE, PUBLICATION_FILE, Run
from feature_repo.contracts.tables import table_path
from infra.local.reproduction import NotReproducibleError, _link_table, _versions_read, reproduce
from spark_jobs.io.light_delta import open_table, read_table, version
from spark_jobs.io.run_hashes import MADE_BY_ONE_RUN, run_hashes
from spark_jobs.io.run_store import write_report, write_run
from spark_jobs.io.table_hash import hash_table
from tests.builders import make_run, write_rows

ITEMS = "bronze.items"


@pytest.fixture
def shop(environment: Environment) -> Environment:
    """Three versions of the items, two of the item numbers; a run that read version 1 and 0 of them."""
    for n in range(3):
        write_rows(environment, ITEMS, [{"item_id": f"i {n}", "source": "test"}])
    for n in range(2):
        write_rows(environment, "gold.item_ids", [{"item_id": f"i{n}", "item_number": n}])
    return environment


def the_run(shop: Environment, **pins: int) -> Run:
    run = make_run(shop, "2024-03-08", run_key="night", pins={ITEMS: 1, "bronze.users": -1, **pins})
    write_run(shop, run)
    write_report(shop, "night", EVALUATION_FILE, {"delta_versions": {"gold.item_ids": 0}, "champion": None})
    return run


def test_tables_are_linked_as_the_run_read_them(shop: Environment) -> None:
    run = the_run(shop)
    assert _versions_read(shop, run) == {ITEMS: 1, "gold.item_ids": 0}
    copy = shop._replace(tenant="repro-default")
    _link_table(shop, copy, ITEMS, 1)
    assert version(copy, ITEMS) == 1
    assert sorted(read_table(copy, ITEMS, 1)["item_id"].to_pylist()) == ["i 0", "i 1"]
    # What is written to the copy, the original never sees; the data itself is one file on the disk.
    write_rows(copy, ITEMS, [{"item_id": "only here", "source": "test"}])
    assert sorted(read_table(shop, ITEMS)["item_id"].to_pylist()) == ["i 0", "i 1", "i 2"]
    assert version(shop, ITEMS) == 2
    assert {path.stat().st_nlink for path in files_of(shop, ITEMS)} == {2}


def files_of(shop: Environment, name: str) -> list[Path]:
    found = sorted(Path(table_path(shop.lakehouse, name)).rglob("*.parquet"))
    assert found
    return found


def first_file(shop: Environment, name: str) -> Path:
    found = open_table(shop, name, 0)
    assert found is not None
    (uri,) = found.file_uris()
    return Path(uri.removeprefix("file://"))


def test_what_is_gone_is_named(shop: Environment) -> None:
    with pytest.raises(NotReproducibleError, match=r"^not reproducible: bronze\.items has no version 7"):
        _versions_read(shop, the_run(shop, **{ITEMS: 7}))
    with pytest.raises(NotReproducibleError, match=r"^not reproducible: the table bronze\.users is gone$"):
        _versions_read(shop, the_run(shop, **{"bronze.users": 0}))
    first_file(shop, ITEMS).unlink()  # as maintenance or an erasure does
    with pytest.raises(NotReproducibleError, match=r"1 files of bronze\.items version 1 are gone .*30 days.*erasure"):
        _versions_read(shop, the_run(shop))
    with pytest.raises(NotReproducibleError, match="object store"):
        _versions_read(shop._replace(lakehouse="s3a://tables"), the_run(shop))


def test_only_a_finished_run_is_made_again(shop: Environment) -> None:
    nowhere = {names.REDIS_ONLINE_URL: "redis://127.0.0.1:1/0", names.MLFLOW_URI: "http://127.0.0.1:1"}
    variables = {names.HOME: shop.home, **nowhere}
    with pytest.raises(DataError, match=r"no run 'nihgt'"):
        reproduce("nihgt", variables)
    the_run(shop)
    with pytest.raises(NotReproducibleError, match=r"night never finished, so it left no hashes\.json"):
        reproduce("night", variables)
    write_report(shop, "night", HASHES_FILE, {"as_of": "2024-03-08", "hashes": {}})
    with pytest.raises(DependencyError):  # now it would begin
        reproduce("night", variables)
    first_file(shop, "gold.item_ids").unlink()
    with pytest.raises(NotReproducibleError, match=r"gold\.item_ids version 0 are gone"):
        reproduce("night", variables)


def test_a_run_is_hashed_by_what_it_alone_makes(shop: Environment) -> None:
    run = the_run(shop)
    days = (date(2024, 3, 7), run.as_of_day)
    for n, day in enumerate(days):
        write_rows(shop, "gold.candidates", [{"user_id": f"u{n}", "as_of": day}])
    write_report(shop, "night", PUBLICATION_FILE, {"published": False, "version": None})
    hashes = run_hashes(shop, run)
    assert set(hashes) == set(MADE_BY_ONE_RUN)
    assert {"gold.candidates", "gold.evaluations", "gold.user_features"} <= set(hashes)
    assert not {"silver.events", "gold.item_ids", "gold.metrics_daily"} & set(hashes)
    assert hashes["gold.candidates"] == hash_table(shop, "gold.candidates", run.as_of_day)
    assert hashes["gold.candidates"] != hash_table(shop, "gold.candidates", days[0])
    made = {"candidates_checksum": "ab", "user_count": 3, "files": {"items.json": "cd"}}
    write_report(shop, "night", PUBLICATION_FILE, {"published": True, **made})
    assert run_hashes(shop, run) == {**hashes, "lists": "ab (3 users)", "bundle items.json": "cd"}
