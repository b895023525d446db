"""The few calls that Nightjar makes to Airflow's REST API: log in, trigger a DAG run, follow it, read its logs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date
from typing import Any

import httpx

from feature_repo.contracts.errors import DataError, DependencyError

TIMEOUT_SECONDS = 30.0
_LOCKED_PAUSES = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
TERMINAL_STATES = frozenset({"success", "failed"})


class AirflowApi:
    """A client with a token of its own. Every call raises DependencyError when Airflow does not answer."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._token: str | None = None
        is_local = httpx.URL(url).host in ("127.0.0.1", "localhost")
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=not is_local)

    def __enter__(self) -> AirflowApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def health(self) -> dict[str, Any]:
        """Component -> status and latest heartbeat. Needs no login."""
        return self._send("GET", "/api/v2/monitor/health", login=False).json()

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Create the pool unless there is one (whose slots somebody may have changed on purpose)."""
        if self._send("GET", f"/api/v2/pools/{name}", accept=(200, 404)).status_code == 404:
            pool = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            self._send("POST", "/api/v2/pools", json=pool, accept=(201, 409))

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """The DAG as the scheduler knows it, or None while it was not parsed."""
        response = self._send("GET", f"/api/v2/dags/{dag_id}", accept=(200, 404))
        return None if response.status_code == 404 else response.json()

    def params(self, dag_id: str) -> dict[str, Any]:
        """Name -> default of each parameter of a DAG."""
        details = self._send("GET", f"/api/v2/dags/{dag_id}/details").json()
        return {name: spec.get("value") for name, spec in (details.get("params") or {}).items()}

    def import_errors(self) -> list[str]:
        """What the DAG processor could not read, one text per file."""
        found = self._send("GET", "/api/v2/importErrors").json()["import_errors"]
        return [f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in found]

    def wait_for_dag(self, dag_id: str, timeout_seconds: float = 120) -> dict[str, Any]:
        """The DAG once it is parsed. Raises DependencyError with the import errors when it is not in time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            dag = self.dag(dag_id)
            if dag is not None and not dag.get("is_stale"):
                return dag
            if time.monotonic() > deadline:
                errors = "; ".join(self.import_errors()) or "no import error: see `nightjar logs dag-processor`"
                raise DependencyError(f"Airflow has not parsed {dag_id} in {timeout_seconds:.0f} s: {errors}")
            time.sleep(0.5)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run it."""
        self._send("PATCH", f"/api/v2/dags/{dag_id}", params={"update_mask": "is_paused"}, json={"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a manual run; returns its run id. Raises DataError with Airflow's words when it refuses the params."""
        body = {"logical_date": None, "conf": dict(conf)}
        response = self._send("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body, accept=(200, 201, 400, 422))
        if response.status_code in (400, 422):
            raise DataError(f"Airflow refuses these parameters: {_detail(response)}")
        return str(response.json()["dag_run_id"])

    def backfill(self, dag_id: str, first: date, last: date) -> int:
        """Start a run for each data interval [day, next day) from `first` to `last`, oldest first; returns its id.

        Days that have run already run again. Raises DataError with Airflow's words when it refuses, for example while
        another backfill of the DAG is under way; DependencyError when its database stays locked.
        """
        body = {
            "dag_id": dag_id,
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T00:00:00Z",
            "run_backwards": False,
            "dag_run_conf": {},
            "reprocess_behavior": "completed",
            "max_active_runs": 1,
        }
        # Airflow on SQLite may find its database locked by its scheduler; it has then undone what it began.
        for seconds in (*_LOCKED_PAUSES, None):
            response = self._send("POST", "/api/v2/backfills", json=body, accept=(200, 201, 400, 409, 422, 503))
            if response.status_code != 503:
                break
            if seconds is None:
                raise DependencyError(f"Airflow did not take the backfill of {dag_id}: {_detail(response)}")
            time.sleep(seconds)
        if response.status_code >= 400:
            raise DataError(f"Airflow refuses the backfill of {dag_id} from {first} to {last}: {_detail(response)}")
        return int(response.json()["id"])

    def backfill_has_ended(self, backfill_id: int) -> bool:
        """Whether every run of the backfill has come to its end, well or not."""
        return self._send("GET", f"/api/v2/backfills/{backfill_id}").json()["completed_at"] is not None

    def runs_between(self, dag_id: str, first: date, last: date) -> list[dict[str, Any]]:
        """Runs with an interval that begins on a day from `first` to `last`, oldest first."""
        query = {
            "logical_date_gte": f"{first}T00:00:00Z",
            "logical_date_lte": f"{last}T23:59:59Z",
            "order_by": "logical_date",
            "limit": "1000",
        }
        return self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=query).json()["dag_runs"]

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One DAG run."""
        return self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}").json()

    def last_run(self, dag_id: str) -> dict[str, Any] | None:
        """The DAG run that was started last, or None."""
        query = {"order_by": "-run_after", "limit": "1"}
        response = self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=query, accept=(200, 404))
        runs = response.json().get("dag_runs") or [None]
        return runs[0]

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The tasks of a run with state, try number, start, end and duration (seconds)."""
        return self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances").json()["task_instances"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> list[str]:
        """The lines that a task wrote in one try, without Airflow's decoration; empty when there is no log."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        response = self._send("GET", path, params={"full_content": "true"}, accept=(200, 404))
        if response.status_code == 404:
            return []
        content = response.json().get("content", [])
        return [str(entry.get("event", "")) if isinstance(entry, dict) else str(entry) for entry in content]

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
        login: bool = True,
    ) -> httpx.Response:
        try:
            if login and self._token is None:
                self._token = self._new_token()
            response = self._request(method, path, json, params, login)
            if response.status_code == 401 and login:
                self._token = self._new_token()
                response = self._request(method, path, json, params, login)
        except httpx.HTTPError as error:
            raise DependencyError(f"Airflow at {self.url} does not answer ({type(error).__name__})") from error
        if response.status_code not in accept:
            raise DependencyError(f"Airflow: {method} {path} answered {response.status_code}: {_detail(response)}")
        return response

    def _request(self, method: str, path: str, json: Any, params: Any, login: bool) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"} if login else {}
        return self._client.request(method, path, json=json, params=params, headers=headers)

    def _new_token(self) -> str:
        response = self._client.post("/auth/token", json=self._login)
        if response.status_code != 201:
            raise DependencyError(f"Airflow at {self.url} refuses the login: {_detail(response)}")
        return str(response.json()["access_token"])


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json().get("detail", response.text)
    except ValueError:
        detail = response.text
    return str(detail)[:500]
