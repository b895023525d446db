"""How an import is asked for, and what it did, in numbers that must add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import ContractError, DataError
from infra.importing.rejects import RejectedFile, check_target, reject_path, write_rejects

if TYPE_CHECKING:
    from infra.importing.checking import Tally
    from infra.importing.mapping import ColumnMap

Progress = Callable[[int, str], None]
"""Is told how many lines are read, and of which file."""


@dataclass(frozen=True)
class Options:
    """How to read, and what to leave behind.

    prefix           put before each source name, to tell folders of the same name apart
    input_format     one of `mapping.INPUT_FORMATS`; None: by extension and content; as encoding and delimiter, it
                     overrules the mapping's
    guess            map columns by their names when no mapping is given (see `guessing`)
    save_mapping     file for the mapping that was used
    rejects          file for the refused lines; with several files a folder
    rejects_folder   folder for them when `rejects` is not given; None: no reject files
    wait_seconds     how long to wait for another import to end
    """

    prefix: str = ""
    input_format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    guess: bool = False
    save_mapping: Path | None = None
    rejects: Path | None = None
    rejects_folder: Path | None = None
    wait_seconds: float = 0.0

    def prepare(self, maps: Mapping[str, ColumnMap]) -> None:
        """Save the one mapping of all files, and check that the reject file may be written.

        Raises DataError when the guesses differ, or when `rejects` is a file of somebody else.
        """
        if self.rejects is not None:
            check_target(self.rejects, is_folder=len(maps) > 1)
        if self.save_mapping is None:
            return
        first, *others = maps
        for other in others:
            if maps[other] != maps[first]:
                raise DataError(f"{first} and {other} need different mappings; import and save them one by one")
        used = maps[first]
        used = replace(
            used, format=self.input_format or used.format, encoding=self.encoding or used.encoding,
            delimiter=self.delimiter or used.delimiter,
        )  # fmt: skip
        used.save(self.save_mapping)

    def mapping_words(self, maps: Mapping[str, ColumnMap]) -> dict[str, str]:
        """Our field -> their column as guessed, of the first file; empty when nothing was guessed."""
        return dict(next(iter(maps.values())).columns) if self.guess and maps else {}


def written_rejects(options: Options, tally: Tally, sources: Sequence[str]) -> tuple[str, ...]:
    """Write the reject files of an import's sources; their paths. Sources without rejects lose an older one of ours."""
    paths = []
    is_one_file = len(sources) == 1
    for source in sources:
        rejected = tally.rejected.get(source) or RejectedFile(source, "csv", ".csv", None, [])
        target = options.rejects if is_one_file else None
        folder = options.rejects or options.rejects_folder
        if target is None and folder is None:
            continue
        if target is not None:
            candidates = [target]
        else:
            extensions = (rejected.extension,) if rejected.lines else (".csv", ".tsv", ".jsonl")
            candidates = [reject_path(Path(str(folder)), source, extension) for extension in extensions]
        for path in candidates:
            written = write_rejects(path, rejected)
            if written is not None:
                paths.append(str(written))
    return tuple(paths)


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
    rejects       reject files that were written
    mapping       our field -> their column, where the mapping was guessed
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
    rejects: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)

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
