"""Alerts of the night: one file each in `<NIGHTJAR_HOME>/alerts/<tenant>`, and a webhook when there is one.

The file is the record: whoever creates it raises the alert, so that an alert is raised once however often it is found.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError

WEBHOOK = "NIGHTJAR_ALERT_WEBHOOK"
"""Environment variable: an http(s) address to which each alert is posted as JSON. Unset: none."""

TIMEOUT_SECONDS = 10.0


def alerts_folder(environment: Environment) -> Path:
    """Where the alerts of this installation lie; it need not exist."""
    return Path(environment.home, "alerts", environment.tenant)


def raise_alert(environment: Environment, name: str, alert: Mapping[str, Any]) -> bool:
    """Write `<name>.json`; False when this alert was raised before."""
    path = alerts_folder(environment) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(dict(alert), file, indent=1, sort_keys=True, ensure_ascii=False)
    except FileExistsError:
        return False
    return True


def post_alert(url: str, alert: Mapping[str, Any]) -> str | None:
    """POST the alert as JSON; None, or in words why nobody got it. Raises DataError on an address that is not HTTP."""
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{WEBHOOK} is an http or https address, got {url!r}", field=WEBHOOK)
    body = json.dumps(dict(alert), ensure_ascii=False).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
            return None
    except OSError as error:  # URLError and HTTPError are OSErrors
        return f"{type(error).__name__}: {error}"
