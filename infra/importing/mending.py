"""What a power cut left of the imported tables, before anybody reads them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.object_store import is_on_store
from feature_repo.contracts.tables import TABLES, table_path
from feature_repo.contracts.torn_commits import sync_newest, take_back_torn_commits
from infra.importing.lease import writer_lease


def mend_imported_tables(env: Environment) -> dict[str, list[int]]:
    """Take back what a cut tore of an import that had said nothing, and that nobody may ever type again; table ->
    versions that are gone, of those that lost any.

    An import that runs just now is left alone: it began with this.
    """
    if is_on_store(env.lakehouse):
        return {}
    gone: dict[str, list[int]] = {}
    with suppress(DependencyError), writer_lease(env):
        for name in sorted(name for name, spec in TABLES.items() if spec.writer == "importer"):
            root = Path(table_path(env.lakehouse, name, tenant=env.tenant))
            if root.is_dir():
                if versions := take_back_torn_commits(root):
                    gone[name] = versions
                sync_newest(root)
    return gone
