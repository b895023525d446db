"""A power cut for a folder: everything in it goes back to what had reached the disk.

Programs run with a small library (`disk_shim.c`, compiled here) that notes the length of a file at each fsync, and the
names in a folder at each fsync of the folder. A file keeps the bytes that were synced; a name that its folder was never
synced with is gone. A folder that is renamed keeps what it was synced with. A name that replaced another one since then
stays: both are legal after a real cut. What was there at the last `settled()` counts as on disk. The same library can
play a full disk, and a slow one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.errors import DependencyError

_SOURCE = Path(__file__).with_name("disk_shim.c")


class CutReport(NamedTuple):
    """What a cut took away."""

    files_gone: int
    files_shortened: int
    bytes_gone: int


def compiler() -> str | None:
    """A C compiler, or None: then there can be no power cut here."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


class Disk:
    """The disk under `home`. The library, its log and its switch lie in `workshop`, outside of `home`."""

    def __init__(self, home: Path, workshop: Path) -> None:
        """Compiles the library. Raises DependencyError when there is no compiler, or no glibc to preload into."""
        self._home = home.resolve()
        workshop.mkdir(parents=True, exist_ok=True)
        self._log, self._switch = workshop / "synced.log", workshop / "switch"
        self._library = workshop / "disk_shim.so"
        self._log.touch()
        self._switch.write_bytes(b"00")
        program = compiler()
        if program is None:
            raise DependencyError("no C compiler (cc, gcc or clang) on PATH: power cuts need one")
        command = [program, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise DependencyError(f"{program} cannot build {_SOURCE.name}: {done.stderr[-500:]}")
        self._lengths: dict[str, int] = {}
        self._names: dict[str, set[str]] = {}
        self._read = 0

    def variables(self) -> Mapping[str, str]:
        """What a program's environment needs, so that its syncs are noted."""
        return {
            "LD_PRELOAD": str(self._library.resolve()),
            "NIGHTJAR_SHIM_HOME": str(self._home),
            "NIGHTJAR_SHIM_LOG": str(self._log.resolve()),
            "NIGHTJAR_SHIM_SWITCH": str(self._switch.resolve()),
        }

    def fill(self, *, is_full: bool) -> None:
        """From now on writes fail with ENOSPC, or no longer."""
        with self._switch.open("r+b") as switch:  # in place: it is mapped
            switch.write(b"1" if is_full else b"0")

    def slow_down(self, seconds: float) -> None:
        """From now on each fsync takes so much longer, at most 0.7 s, in steps of 10 ms; 0: no longer."""
        with self._switch.open("r+b") as switch:
            switch.seek(1)
            switch.write(bytes([ord("0") + min(70, round(seconds * 100))]))

    def settled(self) -> None:
        """What lies there now is on disk."""
        os.sync()
        self._lengths.clear()
        self._names.clear()
        self._read = self._log.stat().st_size
        for path in (self._home, *self._home.rglob("*")):
            if path.is_dir():
                self._names[_identity(path)] = set(os.listdir(path))
            elif path.is_file():
                self._lengths[_identity(path)] = path.stat().st_size

    def cut(self) -> CutReport:
        """Take away what was not on disk. No program may be running. Then `settled()` holds."""
        self._follow()
        gone = shortened = lost = 0
        for path in sorted(self._home.rglob("*")):
            if not path.exists():
                continue  # its folder went
            size = path.stat().st_size
            if path.name not in self._names.get(_identity(path.parent), ()):
                gone += 1
                lost += 0 if path.is_dir() else size
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.is_file():
                kept = self._lengths.get(_identity(path), 0)
                if kept < size:
                    shortened += 1
                    lost += size - kept
                    os.truncate(path, kept)
        self.settled()
        return CutReport(gone, shortened, lost)

    def _follow(self) -> None:
        with self._log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().decode("utf-8", "surrogateescape").splitlines()
        self._read = self._log.stat().st_size
        for line in lines:
            kind, *fields = line.split("\t")
            if kind == "F":
                identity, length, _ = fields
                self._lengths[identity] = int(length)
            elif kind == "D":
                identity, names, _ = fields
                self._names[identity] = {*names.split("/")}


def _identity(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"
