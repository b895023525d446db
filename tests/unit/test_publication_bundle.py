"""The bundle on disk: whole or absent, checked by hash, repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.publication import ITEMS_FILE, MANIFEST_FILE, NEIGHBOURS_FILE, POPULAR_FILE, Manifest
from spark_jobs.io import bundle

FILES = {ITEMS_FILE: b'{"item_number": []}', NEIGHBOURS_FILE: b"NJN1", POPULAR_FILE: b"{}"}


def manifest_of(files: dict[str, bytes], as_of: str = "2024-03-08", run: str = "night-1") -> Manifest:
    return Manifest(
        as_of=as_of, model="als", recipe={}, user_count=1, item_count=1, candidates_checksum="0" * 16,
        last_event_at=None, files=bundle.file_hashes(files), volatile={"run_key": run},
    )  # fmt: skip


def write(root: Path, manifest: Manifest, files: dict[str, bytes] = FILES) -> Path:
    return bundle.write_bundle(str(root), manifest, files, tenant="default")


def test_a_bundle_holds_its_files_and_its_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    folder = write(tmp_path, manifest)
    assert folder == tmp_path / "default" / manifest.version()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        **FILES, MANIFEST_FILE: manifest.to_json().encode(),
    }  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == [manifest.version()]  # nothing left beside it
    assert bundle.check_bundle(folder, manifest) == []


def test_known_hash() -> None:
    # printf NJN1 | sha256sum
    assert bundle.file_hashes({NEIGHBOURS_FILE: b"NJN1"}) == {
        NEIGHBOURS_FILE: "f58ce9b97d8189858afbb406899034b91e61335e0d3736af5a25c1404b1301f4"
    }


def test_what_a_killed_write_left_is_no_bundle_and_does_not_block(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    leftover = tmp_path / "default" / f".{manifest.version()}.tmp"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"...")
    folder = write(tmp_path, manifest)
    assert bundle.check_bundle(folder, manifest) == []
    assert not (folder / "half").exists()
    assert not leftover.exists()


def test_a_whole_bundle_is_left_alone_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path, manifest_of(FILES, run="night-1"))
    write(tmp_path, manifest_of(FILES, run="night-1-again"))
    assert json.loads((folder / MANIFEST_FILE).read_text())["volatile"] == {"run_key": "night-1"}
    (folder / POPULAR_FILE).write_bytes(b"[]")
    write(tmp_path, manifest_of(FILES, run="night-2"))
    assert (folder / POPULAR_FILE).read_bytes() == b"{}"
    assert json.loads((folder / MANIFEST_FILE).read_text())["volatile"] == {"run_key": "night-2"}


def test_check_names_each_difference(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    folder = write(tmp_path, manifest)
    (folder / ITEMS_FILE).write_bytes(b"{}")
    (folder / NEIGHBOURS_FILE).unlink()
    (folder / MANIFEST_FILE).write_text(manifest_of(FILES, as_of="2024-03-07").to_json())
    differences = bundle.check_bundle(folder, manifest)
    assert len(differences) == 3
    assert "describes 2024-03-07" in differences[0]
    assert differences[1].startswith("items.json: SHA-256")
    assert differences[2].startswith("neighbours.bin: missing")
    (missing, *rest) = bundle.check_bundle(tmp_path / "nowhere", manifest)
    assert missing.startswith("manifest.json")
    assert len(rest) == 3


def test_files_that_the_manifest_does_not_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="not the ones its manifest names"):
        write(tmp_path, manifest_of(FILES), {**FILES, POPULAR_FILE: b"[]"})
    with pytest.raises(ContractError, match="not the ones its manifest names"):
        write(tmp_path, manifest_of({ITEMS_FILE: b""}), {ITEMS_FILE: b""})
    assert bundle.list_bundles(str(tmp_path), tenant="default") == []


def test_list_and_remove(tmp_path: Path) -> None:
    old, new = manifest_of(FILES, as_of="2024-03-07"), manifest_of(FILES, as_of="2024-03-08")
    for manifest in (new, old):
        write(tmp_path, manifest)
    (tmp_path / "default" / ".2024-03-06-00000000.tmp").mkdir()
    (tmp_path / "default" / "notes").mkdir()
    listed = ["2024-03-06-00000000", old.version(), new.version()]
    assert bundle.list_bundles(str(tmp_path), tenant="default") == listed
    assert bundle.remove_bundles(str(tmp_path), listed[:2], tenant="default") == [old.version()]
    assert sorted(p.name for p in (tmp_path / "default").iterdir()) == [new.version(), "notes"]
