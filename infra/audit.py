"""What people changed, who they were, when and why: one file of an installation, added to and never rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.whole_files import append_line


def audit_path(environment: Environment) -> Path:
    """Where changes by people are written down, one JSON object a line, oldest first."""
    return Path(environment.home) / "audit" / f"{environment.tenant}.jsonl"


def write_audit(environment: Environment, line: Mapping[str, object]) -> None:
    """Add one line; it is on disk when this returns."""
    append_line(audit_path(environment), json.dumps(line, ensure_ascii=False, sort_keys=True))
