"""A running stack as the end-to-end tests see it: files, command line, HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from infra.importing.report import ImportReport
from infra.local.night import Night, run_nightly
from infra.local.variables import stack_environment
from infra.simulator.config import ShopConfig
from infra.simulator.shop import ShopSummary

SHOP = ShopConfig(seed=11, user_count=500, item_count=200, event_count=30_000, days=30, end_day=date(2025, 7, 1))
EARLIER_AS_OF = (SHOP.end_day - timedelta(days=3)).isoformat()
AS_OF = SHOP.end_day.isoformat()


@dataclass(frozen=True)
class Installation:
    """A running stack with an imported shop."""

    variables: dict[str, str]
    shop: Path
    written: ShopSummary
    imported: tuple[ImportReport, ...]

    @property
    def environment(self) -> Environment:
        return stack_environment(self.variables)

    @property
    def api_url(self) -> str:
        book = json.loads((Path(self.environment.home) / "run" / "environment.json").read_text())
        return str(book[names.API_URL])

    def run_night(self, as_of: str, **options: Any) -> Night:
        return run_nightly(as_of, variables=self.variables, **options)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line as a person runs it, in a process of its own."""
        program = Path(sys.executable).parent / "nightjar"
        return subprocess.run([program, *arguments], env=self.variables, capture_output=True, text=True, timeout=300)

    def cli_json(self, *arguments: str) -> Any:
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def ask(self, **body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.api_url}/v1/recommendations", json={"num_results": 10, **body}, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()
