"""`nightjar import shop`: a simulated shop's folder: users first (their consent decides), then items, then events."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.importing.catalogue import import_items, import_users
from infra.importing.events import import_events
from infra.importing.report import ImportReport, Options, Progress

EVENTS_FOLDER, ITEMS_FILE, USERS_FILE = "events", "items.parquet", "users.parquet"


def import_shop(
    folder: str | Path, env: Environment, *, received_at: datetime | None = None, progress: Progress | None = None
) -> tuple[ImportReport, ImportReport, ImportReport]:
    """Import a shop folder: (users, items, events). Sources of events are `<folder name>/events/<file>`.

    Raises DataError, before writing, when a part of the folder is missing.
    """
    root = Path(folder)
    for part in (USERS_FILE, ITEMS_FILE, EVENTS_FOLDER):
        if not (root / part).exists():
            raise DataError(
                f"{root} is no shop folder: it has no {part} (make one with `nightjar simulate --out {root}`)"
            )
    users = import_users(root / USERS_FILE, env, received_at=received_at)
    items = import_items(root / ITEMS_FILE, env, received_at=received_at)
    events = import_events(
        root / EVENTS_FOLDER,
        env,
        received_at=received_at,
        # its malformed lines must not be taken for a file in another encoding
        options=Options(prefix=f"{root.resolve().name}/", encoding="utf-8"),
        progress=progress,
    )
    return users, items, events
