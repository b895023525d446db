"""Where an installation keeps things: the environment variables that every process reads, in one table.

Only NIGHTJAR_HOME is needed on one machine; each other variable moves one part elsewhere (object store, Redis cluster,
shared MLflow). Code takes an `Environment`; only entry points read `os.environ`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from feature_repo.contracts.keys import DEFAULT_TENANT, check_tenant
from feature_repo.contracts.object_store import ObjectStore, is_on_store, lakehouse_location

HOME = "NIGHTJAR_HOME"
TENANT = "NIGHTJAR_TENANT"
LAKEHOUSE = "NIGHTJAR_LAKEHOUSE"
PUBLICATIONS = "NIGHTJAR_PUBLICATIONS"
RUNS = "NIGHTJAR_RUNS"
REDIS_LOG_URL = "NIGHTJAR_REDIS_LOG_URL"
REDIS_ONLINE_URL = "NIGHTJAR_REDIS_ONLINE_URL"
API_URL = "NIGHTJAR_API_URL"
API_KEY = "NIGHTJAR_API_KEY"
"""The key that our own commands send to the API, where it needs one."""
JARS = "NIGHTJAR_JARS"
MLFLOW_URI = "MLFLOW_TRACKING_URI"
AIRFLOW_URL = "NIGHTJAR_AIRFLOW_URL"
CODE_VERSION = "NIGHTJAR_CODE_VERSION"
QUALITY_LIMITS = "NIGHTJAR_QUALITY_LIMITS"
PLACEMENTS = "NIGHTJAR_SERVING_PLACEMENTS"
FEAST_REDIS = "NIGHTJAR_FEAST_REDIS"
INBOX = "NIGHTJAR_INBOX"


class Environment(NamedTuple):
    """Places of one installation; paths without a trailing slash.

    lakehouse     root of the Delta tables: a folder, or s3a://bucket/prefix
    store         how that bucket is reached; None for a folder
    publications  root of the published bundles, readable by every serving process
    runs          root of the run folders (pins, models, reports), readable by every task of a night
    jars          folder with the Delta jars
    inbox         folder whose subfolders users, items and events `nightjar import sync` takes files from
    quality_limits  a TOML or JSON file with limits of the quality gate; empty: the defaults
    placements    the TOML or JSON file of the placements that serving has; empty: the presets
    """

    home: str
    tenant: str
    lakehouse: str
    publications: str
    runs: str
    jars: str
    redis_log_url: str
    redis_online_url: str
    mlflow_uri: str
    code_version: str
    inbox: str
    quality_limits: str = ""
    placements: str = ""
    store: ObjectStore | None = None

    @property
    def storage_options(self) -> dict[str, str] | None:
        """What the light Delta engine is told beside a table's path."""
        return None if self.store is None else self.store.light_options()

    @property
    def beside_tables(self) -> str:
        """The folder of this tenant's files that belong to the lakehouse and are no tables (locks, ledgers): within it,
        or under the home when it is on an object store. Who shares the tables must share this folder."""
        root = f"{self.home}/beside-tables" if is_on_store(self.lakehouse) else self.lakehouse
        return f"{root}/{self.tenant}"

    @property
    def decisions(self) -> str:
        """The folder of this tenant's decision files: written by the API's workers, emptied by the archiver."""
        return f"{self.home}/decisions/{self.tenant}"

    @property
    def recipes(self) -> str:
        """The file with the recipes that the nights of this tenant train; there is none until somebody chose some."""
        return f"{self.home}/recipes/{self.tenant}.json"

    @classmethod
    def from_mapping(cls, variables: Mapping[str, str]) -> Environment:
        """From `os.environ` or any mapping; every default lies under NIGHTJAR_HOME (default `.nightjar`).

        Raises DataError on a tenant, a lakehouse or an endpoint of its store that cannot be one.
        """
        home = str(Path(variables.get(HOME, ".nightjar")).absolute())
        lakehouse = lakehouse_location(variables.get(LAKEHOUSE, f"{home}/lakehouse"))
        return cls(
            home=home,
            tenant=check_tenant(variables.get(TENANT, DEFAULT_TENANT)),
            lakehouse=lakehouse,
            publications=variables.get(PUBLICATIONS, f"{home}/publications"),
            runs=variables.get(RUNS, f"{home}/runs"),
            jars=variables.get(JARS, f"{home}/jars"),
            redis_log_url=variables.get(REDIS_LOG_URL, "redis://127.0.0.1:6380/0"),
            redis_online_url=variables.get(REDIS_ONLINE_URL, "redis://127.0.0.1:6379/0"),
            mlflow_uri=variables.get(MLFLOW_URI, "http://127.0.0.1:5000"),
            code_version=variables.get(CODE_VERSION, "unknown"),
            inbox=variables.get(INBOX, f"{home}/inbox"),
            quality_limits=variables.get(QUALITY_LIMITS, ""),
            placements=variables.get(PLACEMENTS, ""),
            store=ObjectStore.of(lakehouse, variables),
        )


def feast_connection(redis_url: str) -> str:
    """A Redis URL in the form that feature_store.yaml wants: `host:port,db=0[,password=...][,ssl=true]`."""
    url = urlsplit(redis_url)
    parts = [f"{url.hostname or '127.0.0.1'}:{url.port or 6379}", f"db={url.path.strip('/') or '0'}"]
    if url.username:
        parts.append(f"username={unquote(url.username)}")
    if url.password:
        parts.append(f"password={unquote(url.password)}")
    if url.scheme == "rediss":
        parts.append("ssl=true")
    return ",".join(parts)
