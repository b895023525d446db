"""Whether the object store of the lakehouse lets us work, asked before anything is started on it."""

from __future__ import annotations

from deltalake import DeltaTable

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.object_store import store_problem


def check_store(environment: Environment) -> None:
    """One question to the store; a lakehouse in a folder is not asked. Whether we may write shows with the first write.

    Raises DependencyError naming what is wrong: the bucket, the keys, the region, the address.
    """
    if environment.store is None:
        return
    place = f"{environment.lakehouse}/{environment.tenant}"
    try:
        DeltaTable.is_deltatable(place, storage_options=environment.storage_options)
    except Exception as error:  # the engine has one error for all that a store can answer
        raise DependencyError(f"the lakehouse {environment.lakehouse}: {store_problem(place, error)}") from error
