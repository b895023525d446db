"""The feature store of this installation: opened with its repository applied, and asked for training frames."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import feature_repo.contracts
from feature_repo.contracts import environment as names
from feature_repo.contracts.changes import ITEMS
from feature_repo.contracts.environment import Environment, feast_connection
from feature_repo.contracts.errors import DataError, DependencyError, nearest
from feature_repo.contracts.feature_table import feature_view, features
from spark_jobs.io.catalogue import records_by_id

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureService, FeatureStore

FEATURE_REPO = Path(feature_repo.contracts.__file__).parents[1]
TIMESTAMP = "event_timestamp"
CATEGORY = "category"


def open_store(environment: Environment) -> FeatureStore:
    """The feature store, its repository applied (idempotent). Raises DependencyError when Redis does not answer.

    Sets the variables that feature_store.yaml and the definitions read.
    """
    os.environ.update(
        {
            names.HOME: environment.home,
            names.LAKEHOUSE: environment.lakehouse,
            names.TENANT: environment.tenant,
            names.FEAST_REDIS: feast_connection(environment.redis_online_url),
            "FEAST_USAGE": "False",
        }
    )
    from feast import FeatureStore
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    Path(environment.home, "feast").mkdir(parents=True, exist_ok=True)
    config = load_repo_config(FEATURE_REPO, FEATURE_REPO / "feature_store.yaml")
    with _as_feast_imports_it(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naming_redis(lambda: apply_total(config, FEATURE_REPO, True), environment.redis_online_url)
    return FeatureStore(config=config)


def training_frame(
    environment: Environment, rows: pd.DataFrame, service: str, *, fill_defaults: bool = False
) -> pd.DataFrame:
    """What was known of each row's user and item at its instant: the point-in-time frame of a feature service.

    rows           a row per example, with `event_timestamp` (aware, or naive and then UTC) and the ids that the service
                   is about (user_id, item_id); further columns, such as the label, are kept. A service that needs the
                   item's category takes the column `category`, or else the catalogue's category of item_id
    service        a name in feature_repo/definitions/services.py
    fill_defaults  puts each feature's declared default where there is no value; those without one stay null

    Returns `rows` in their order, duplicates included, with a column per feature. A value is the newest that is stamped
    at or before the row's instant and not older than the view's `fresh_for`; without one it is null (NaN in a
    column of numbers). Raises DataError naming a column that is missing or a service that does not exist.
    """
    import pandas as pd
    from feast.errors import FeatureServiceNotFoundException

    store = open_store(environment)
    try:
        wanted = store.get_feature_service(service)
    except FeatureServiceNotFoundException as error:
        known = sorted(found.name for found in store.list_feature_services())
        raise DataError(
            f"no feature service {service!r}{nearest(service, known)}; there are {', '.join(known)}", field="service"
        ) from error
    columns, keys = _wanted(wanted)
    entities = rows
    if CATEGORY in keys and CATEGORY not in rows and "item_id" in rows:
        entities = rows.assign(**{CATEGORY: _categories(environment, rows["item_id"])})
    missing = [name for name in (*keys, TIMESTAMP) if name not in entities]
    if missing:
        raise DataError(
            f"{service} needs the columns {', '.join([*keys, TIMESTAMP])}; the rows have no {', '.join(missing)}",
            field=missing[0],
        )
    # A missing id joins with nothing; pandas would not say so for null itself.
    asked = entities[keys].fillna("").assign(**{TIMESTAMP: entities[TIMESTAMP]}).reset_index(drop=True)
    found = store.get_historical_features(asked, wanted).to_df()
    frame = rows.reset_index(drop=True)
    if CATEGORY in entities and CATEGORY not in frame:
        frame = frame.assign(**{CATEGORY: entities[CATEGORY].reset_index(drop=True)})
    frame = pd.concat([frame, found[columns]], axis=1)
    return _with_defaults(frame, columns) if fill_defaults else frame


def _wanted(service: FeatureService) -> tuple[list[str], list[str]]:
    """Feature names and join keys of a service, in its order."""
    columns: list[str] = []
    keys: dict[str, None] = {}
    for projection in service.feature_view_projections:
        columns += [feature.name for feature in projection.features]
        keys |= dict.fromkeys(feature_view(projection.name).join_keys)
    return columns, list(keys)


def _categories(environment: Environment, item_ids: pd.Series) -> pd.Series:
    known = records_by_id(environment, ITEMS, item_ids.dropna().tolist())
    return item_ids.map({item_id: row[CATEGORY] for item_id, row in known.items()})


def _with_defaults(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    defined = features()
    filled: dict[str, Any] = {}
    for name in columns:
        feature = defined[name]
        if feature.default is not None:
            whole = frame[name].fillna(feature.default)
            filled[name] = whole.astype("int64" if feature.type == "bigint" else "float64")
    return frame.assign(**filled)


@contextlib.contextmanager
def _as_feast_imports_it() -> Iterator[None]:
    """Feast imports `repo` by its bare name and changes the working directory; both are undone. Definitions are read
    anew, since they take their paths from the environment."""
    here = Path.cwd()
    sys.path.insert(0, str(FEATURE_REPO))
    for name in [m for m in sys.modules if m == "repo" or m.startswith("feature_repo.definitions.")]:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.path.remove(str(FEATURE_REPO))
        os.chdir(here)


def naming_redis(action: Callable[[], object], redis_url: str) -> None:
    """Run `action`; a Redis that does not answer becomes a DependencyError that names the address, without password."""
    import redis

    try:
        action()
    except redis.RedisError as error:
        address = redis_url.rpartition("@")[2].removeprefix("redis://")
        raise DependencyError(
            f"Redis `online` at {address} does not answer ({type(error).__name__}): start the stack with `nightjar up`"
        ) from error
