"""All checks, in the order in which they are shown."""

from __future__ import annotations

import os
from collections.abc import Mapping

from feature_repo.contracts.environment import Environment
from infra.doctor import machine, stack, tools
from infra.doctor.checks import Check, Examine, Limits, Subject, examine_all
from infra.local.variables import known_addresses

EXAMINATIONS: Mapping[str, Examine] = {
    "python": tools.examine_python,
    "packages": tools.examine_packages,
    "java": tools.examine_java,
    "native": tools.examine_native,
    "redis": tools.examine_redis,
    "jars": tools.examine_jars,
    "settings": tools.examine_settings,
    "home": machine.examine_home,
    "disk": machine.examine_disk,
    "memory": machine.examine_memory,
    "open files": machine.examine_open_files,
    "clock": machine.examine_clock,
    "ports": stack.examine_ports,
    "services": stack.examine_services,
    "leftovers": stack.examine_leftovers,
    "lakehouse": stack.examine_lakehouse,
}


def examine(variables: Mapping[str, str] | None = None, limits: Limits = Limits()) -> list[Check]:  # noqa: B008
    """Every check of the installation that `variables` (default: os.environ) describe."""
    given = dict(os.environ if variables is None else variables)
    known = known_addresses(given)
    subject = Subject(known, Environment.from_mapping(known), given, limits)
    return examine_all(subject, EXAMINATIONS)
