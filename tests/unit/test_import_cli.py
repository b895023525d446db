"""`nightjar simulate` and `nightjar import` as a shell sees them: output, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from feature_repo.contracts.errors import NightjarError
from infra.cli import data_commands
from infra.cli.output import exit_code
from infra.importing.mapping import FIELDS_BY_KIND, ColumnMap
from infra.importing.online_retail import COLUMNS

SMALL = ("--events", "3000", "--users", "60", "--items", "40", "--days", "4", "--seed", "9", "--end-day", "2024-03-08")


class Done(NamedTuple):
    code: int
    stdout: str
    error: str


def nightjar(home: Path, *arguments: str) -> Done:
    """These commands alone, without the rest of the tree; errors become exit codes as in `infra.cli.main`."""
    app = typer.Typer()
    data_commands.register(app)
    result = CliRunner().invoke(app, arguments, env={"NIGHTJAR_HOME": str(home), "COLUMNS": "120"})
    if isinstance(result.exception, NightjarError):
        return Done(exit_code(result.exception), result.stdout, str(result.exception))
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("cli") / "shop"
    done = nightjar(folder.parent, "simulate", "--out", str(folder), *SMALL, "--json")
    assert done.code == 0, done.error
    return folder, json.loads(done.stdout)


def test_simulate_says_what_it_wrote(shop: tuple[Path, dict], tmp_path: Path) -> None:
    folder, said = shop
    assert said["config"]["end_day"] == "2024-03-08"
    assert said["counts"] == json.loads((folder / "shop.json").read_text())["counts"]
    assert sorted(p.name for p in (folder / "events").glob("*.parquet"))[-1] == "2024-03-07.parquet"
    for_people = nightjar(tmp_path, "simulate", "--out", str(tmp_path / "again"), *SMALL)
    assert for_people.code == 0
    assert f"{said['counts']['by_type']['view_item']:,}" in for_people.stdout


def test_import_shop_prints_every_reason_and_json_carries_the_same(shop: tuple[Path, dict], tmp_path: Path) -> None:
    folder, said = shop
    as_json = nightjar(tmp_path, "import", "shop", str(folder), "--json")
    assert as_json.code == 0, as_json.error
    events = json.loads(as_json.stdout)["events"]
    assert events["accepted"] == said["counts"]["accepted"]
    assert events["quarantined"] == said["counts"]["malformed"]
    assert events["quarantined_total"] == 9

    for_people = nightjar(tmp_path, "import", "shop", str(folder)).stdout
    lines = [" ".join(line.split()) for line in for_people.splitlines()]
    assert f"read {events['read']:,}" in lines
    assert f"accepted {events['accepted']:,}" in lines
    wanted = [f"quarantined: {reason} {count}" for reason, count in events["quarantined"].items()]
    assert len(wanted) > 5
    assert [line for line in wanted if line not in lines] == []


def test_import_events_items_and_users_take_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,what,at\nann,i1,2024-03-08T09:00:00Z\n,i1,2024-03-08T09:00:00Z\n")
    maps = ("--map", "user_id=who", "--map", "item_id=what", "--map", "timestamp=at", "--map", "event_type=:click")
    done = nightjar(tmp_path, "import", "events", str(tmp_path / "a.csv"), *maps, "--json")
    assert done.code == 0, done.error
    assert json.loads(done.stdout)["events"]["quarantined"] == {"missing_subject": 1}
    for kind, field in (("items", "item_id=what"), ("users", "user_id=who")):
        done = nightjar(tmp_path, "import", kind, str(tmp_path / "a.csv"), "--map", field, "--json")
        assert done.code == 0, done.error
        assert json.loads(done.stdout)[kind]["rows_written"] == 1


def test_bad_input_is_one_clear_message_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,event_type,zeit\n")
    cases = (
        (("import", "events", str(tmp_path / "b.csv")), f"there is no file {tmp_path}/b.csv; did you mean 'a.csv'?"),
        (("import", "events", str(tmp_path / "a.csv")), "a.csv has no column for timestamp"),
        (("import", "users", str(tmp_path / "a.csv"), "--map", "consent_trian=zeit"), "did you mean 'consent_train'?"),
        (("import", "shop", str(tmp_path)), "it has no users.parquet"),
        (("import", "online-retail", str(tmp_path / "a.csv")), "a.csv has no column 'InvoiceNo'"),
        (("simulate", "--out", str(tmp_path)), "is not empty and no simulated shop"),
        (("simulate", "--out", str(tmp_path / "x"), "--days", "1"), "days must lie in 2 ... 1000, got 1"),
    )
    for arguments, message in cases:
        done = nightjar(tmp_path / "home", *arguments)
        assert (done.code, done.stdout) == (2, "")
        assert message in done.error
    assert not (tmp_path / "home").exists()


def test_a_mapping_is_saved_used_and_wrong_options_are_named(tmp_path: Path) -> None:
    orders, saved, rejects = tmp_path / "orders.csv", tmp_path / "events.toml", tmp_path / "bad.csv"
    orders.write_text("customer,sku,ordered_at,n\nann,i1,2024-03-08T09:00:00Z,1\nbob,i1,2024-03-08T10:00:00Z,none\n")
    maps = ("user_id=customer", "item_id=sku", "timestamp=ordered_at", "quantity=n", "event_type=:purchase")
    given = [word for pair in maps for word in ("--map", pair)]
    one = ("--save-mapping", str(saved), "--rejects", str(rejects))
    done = nightjar(tmp_path, "import", "events", str(orders), *given, *one)
    assert (done.code, done.error) == (0, "")
    assert f"rejects: {rejects} (mend the lines there" in done.stdout
    assert rejects.read_text().splitlines()[-1] == "bob,i1,2024-03-08T10:00:00Z,none"
    first = nightjar(tmp_path, "import", "events", str(orders), "--mapping", str(saved), "--json")
    assert json.loads(first.stdout)["events"]["quarantined"] == {"invalid_quantity": 1}
    more = ("--map", "quantity=:7")
    second = nightjar(tmp_path, "import", "events", str(orders), "--mapping", str(saved), *more, "--json")
    assert json.loads(second.stdout)["events"]["accepted"] == 2

    guessed = nightjar(tmp_path, "import", "items", str(orders))
    assert "columns recognised: item_id = sku" in guessed.stdout
    cases = (
        (("items", str(orders), "--mapping", str(saved)), "this mapping is for events, not for items"),
        (("events", str(orders), "--format", "jsonlines"), "got 'jsonlines'; did you mean 'jsonl'?"),
        (("events", str(orders), "--format", "google-merchant"), "--format is one of auto, csv, jsonl, parquet"),
        (("users", str(orders), "--encoding", "latn-1"), "there is no encoding 'latn-1'"),
        (("users", str(orders), "--mapping", str(tmp_path / "event.toml")), "did you mean 'events.toml'?"),
    )
    for arguments, message in cases:
        done = nightjar(tmp_path, "import", *arguments)
        assert (done.code, done.stdout) == (2, "")
        assert message in done.error


def test_the_mappings_that_the_documentation_names_are_good() -> None:
    folder = Path(__file__).parents[2] / "infra" / "docs" / "mappings"
    by_kind = {kind: ColumnMap.load(folder / f"online_retail_{kind}.toml", kind) for kind in FIELDS_BY_KIND}
    assert len(by_kind) == len(list(folder.iterdir())) == 3
    for kind, mapping in by_kind.items():
        mapping.check(kind, COLUMNS)
        assert set(mapping.columns.values()) | set(mapping.ignore) == set(COLUMNS)
