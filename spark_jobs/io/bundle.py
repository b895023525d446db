"""The bundle: the files of one published version that every serving process holds in memory.

A bundle appears whole or not at all: it is written into a hidden folder beside its place, every file and the folder
are fsynced, then the folder is renamed. The layout and the file formats are in `contracts.publication`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.keys import check_tenant
from feature_repo.contracts.publication import MANIFEST_FILE, Manifest, bundle_names, parse_version
from feature_repo.contracts.torn_commits import sync
from feature_repo.contracts.whole_files import make_folder


def bundle_folder(publications: str, version: str, *, tenant: str) -> Path:
    """`<publications>/<tenant>/<version>`"""
    parse_version(version)
    return Path(publications) / check_tenant(tenant) / version


def file_hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """Bundle file name -> SHA-256 hex, for `Manifest.files`."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def write_bundle(publications: str, manifest: Manifest, files: Mapping[str, bytes], *, tenant: str) -> Path:
    """Write the bundle of `manifest.version()`; returns its folder.

    A whole bundle of that version that is already there stays as it is (same version, same bytes); a damaged one is
    replaced. Raises ContractError when the files are not the ones the manifest names.
    """
    if set(files) != set(bundle_names(manifest)) or file_hashes(files) != dict(manifest.files):
        raise ContractError(f"the bundle's files {sorted(files)} are not the ones its manifest names and hashes")
    folder = bundle_folder(publications, manifest.version(), tenant=tenant)
    if folder.is_dir() and not check_bundle(folder, manifest):
        sync(folder.parent)  # who renamed it may have died before this
        return folder
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    for name, data in {**files, MANIFEST_FILE: manifest.to_json().encode("utf-8")}.items():
        with open(staging / name, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    sync(staging)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(staging, folder)
    sync(folder.parent)
    return folder


def check_bundle(folder: Path, manifest: Manifest) -> list[str]:
    """How the bundle on disk differs from its manifest, in words; empty when it is whole.

    The manifest on disk is compared without its volatile part.
    """
    differences = []
    try:
        on_disk = Manifest.from_json((folder / MANIFEST_FILE).read_bytes())
        if on_disk.hash() != manifest.hash():
            differences.append(f"{MANIFEST_FILE}: describes {on_disk.version()}, expected {manifest.version()}")
    except (OSError, ContractError) as error:
        differences.append(f"{MANIFEST_FILE}: {error}")
    for name in bundle_names(manifest):
        path, expected = folder / name, manifest.files.get(name)
        if not path.is_file():
            differences.append(f"{name}: missing in {folder}")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
            differences.append(f"{name}: SHA-256 {found[:12]}, the manifest says {str(expected)[:12]}")
    return differences


def remove_bundles(publications: str, versions: Collection[str], *, tenant: str) -> list[str]:
    """Remove the bundles of `versions`; returns those that were there. A process that still maps a file keeps it."""
    removed = []
    for version in sorted(versions):
        folder = bundle_folder(publications, version, tenant=tenant)
        shutil.rmtree(folder.with_name(f".{version}.tmp"), ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(folder)
            removed.append(version)
    return removed


def list_bundles(publications: str, *, tenant: str) -> list[str]:
    """The versions that have a bundle, or the rest of one that was being written; ascending."""
    root = Path(publications) / check_tenant(tenant)
    if not root.is_dir():
        return []
    found = set()
    for folder in root.iterdir():
        name = folder.name.removeprefix(".").removesuffix(".tmp")
        try:
            parse_version(name)
        except ContractError:
            continue
        found.add(name)
    return sorted(found)
