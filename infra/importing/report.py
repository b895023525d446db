"""What an import did, in numbers that must add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from feature_repo.contracts.errors import ContractError


@dataclass(frozen=True)
class ImportReport:
    """Grain: one import of one kind of thing. read = accepted + quarantined + not_stored, or it does not exist.

    read          lines of the files (blank lines and headers are none)
    accepted      lines that were taken
    quarantined   lines that broke a rule, by reason
    not_stored    lines of people who refused storage: counted, kept nowhere, not even in quarantine
    rows_written  rows in the table; more than `accepted` when a line held several items, fewer when ids repeat
    repeated      accepted lines whose id came before in this import (kept for events, replaced for items and users)
    notes         further counts worth printing, by name
    """

    kind: str
    sources: tuple[str, ...]
    read: int
    accepted: int
    quarantined: Mapping[str, int] = field(default_factory=dict)
    not_stored: int = 0
    rows_written: int = 0
    repeated: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.accepted + sum(self.quarantined.values()) + self.not_stored
        if self.read != total:
            raise ContractError(f"an import of {self.kind} read {self.read} lines but accounts for {total}")

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON; reasons sorted by name."""
        return {
            **asdict(self),
            "quarantined": dict(sorted(self.quarantined.items())),
            "quarantined_total": sum(self.quarantined.values()),
        }
