"""Files that were said to be written outlive a power cut, with the folders that were made for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.whole_files import append_line, write_whole
from infra.bench.events.power import Disk, compiler
from spark_jobs.models.artifacts import part_folder, verify_folder

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
PROGRAM = """
import os
from pathlib import Path
from feature_repo.contracts.environment import Environment
from infra.audit import write_audit
import numpy as np
from spark_jobs.io.run_store import write_report
from spark_jobs.models.artifacts import save_arrays

env = Environment.from_mapping(os.environ)
write_report(env, "night", "refine.json", {"said": 1})
write_audit(env, {"n": 1})
write_audit(env, {"n": 2})
part = lambda folder: save_arrays(folder, model="part", params={}, arrays={"y": np.arange(4)})
model = Path(env.home, "runs", "default", "night", "models", "whole")
save_arrays(model, model="whole", params={}, arrays={"x": np.arange(3)}, parts={"part": part})
"""


@needs_compiler
def test_run_folders_models_and_the_audit_outlive_a_power_cut(environment: Environment, tmp_path: Path) -> None:
    home = Path(environment.home)
    home.mkdir(parents=True, exist_ok=True)
    disk = Disk(home, tmp_path / "workshop")
    disk.settled()
    variables = {**os.environ, **disk.variables(), names.HOME: environment.home}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], env=variables, check=True)
    disk.cut()
    model = home / "runs" / "default" / "night" / "models" / "whole"
    assert verify_folder(model)["model"] == "whole"
    assert verify_folder(part_folder(model, "part"))["files"].keys() == {"y.npy"}
    shutil.rmtree(model.parent)
    found = {path.relative_to(home).as_posix(): path.read_text() for path in home.rglob("*") if path.is_file()}
    assert found == {
        "runs/default/night/refine.json": '{\n "said": 1\n}',
        "audit/default.jsonl": '{"n": 1}\n{"n": 2}\n',
    }


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "a" / "b.json", b"old")
    assert path.stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"new")
    assert {found.name: found.read_bytes() for found in path.parent.iterdir()} == {"b.json": b"old"}
    monkeypatch.undo()
    assert write_whole(path, b"newer", mode=0o600).read_bytes() == b"newer"
    assert path.stat().st_mode & 0o777 == 0o600


def test_names_are_synced_once_and_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("feature_repo.contracts.whole_files.sync", synced.append)
    append_line(tmp_path / "a" / "b" / "c", "1")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    append_line(tmp_path / "a" / "b" / "c", "2")
    assert synced[3:] == []
    assert (tmp_path / "a" / "b" / "c").read_text() == "1\n2\n"
