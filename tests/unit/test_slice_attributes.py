"""By which attributes of people models are compared: what the users table and its changes say at the cut-off."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from infra.importing.tables import bronze_schema, find_table, upsert
from spark_jobs.jobs.train_models import _attributes

USERS: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "ann": ("GB", {"plan": "gold", "age": 41, "vip": True, "colours": ["red"]}),
    "bob": (None, {"plan": "", "age": 7.5}),
    "eve": ("FR", None),
    "joe": ("GB", {"plan": "free"}),
}


def test_values_are_texts_and_what_is_no_single_value_is_left_out(
    environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"user_id": user, "region": region, "attributes": None if said is None else json.dumps(said), "source": "f"}
        for user, (region, said) in USERS.items()
    ]
    upsert(environment, "bronze.users", "user_id", pa.Table.from_pylist(rows, bronze_schema("bronze.users")))
    table = find_table(environment, "bronze.users")
    assert table is not None
    run = Run("r", environment.tenant, "2024-03-08", {"bronze.users": table.version()}, None, True, "", "manual", "x")
    split: Any = SimpleNamespace(subjects=np.array(["a:device", "u:ann", "u:bob", "u:eve", "u:nobody"]))
    found = _attributes(environment, run, split, ("region", "plan", "age", "vip", "colours", "plans"))
    assert found == {
        "region": {"u:ann": "GB", "u:eve": "FR"},
        "plan": {"u:ann": "gold"},
        "age": {"u:ann": "41", "u:bob": "7.5"},
        "vip": {"u:ann": "true"},
        "colours": {},
        "plans": {},
    }
    assert "no test person has the attribute 'plans'; did you mean 'plan'?" in capsys.readouterr().out
