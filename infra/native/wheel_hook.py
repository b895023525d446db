"""Puts the compiled parts into a wheel, where there is a C compiler; else the wheel is one of pure Python.

NIGHTJAR_PURE_PYTHON=1 makes a pure one anyway. A checkout that is installed as editable is compiled by `make setup`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeHook(BuildHookInterface[Any]):
    """Of the wheel alone: a source distribution has no compiled files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or os.environ.get("NIGHTJAR_PURE_PYTHON", "") not in ("", "0"):
            return
        # by its place: in a build environment the project itself cannot be imported
        place = Path(self.root, "infra", "native", "compiling.py")
        spec = importlib.util.spec_from_file_location("nightjar_compiling", place)
        assert spec is not None
        assert spec.loader is not None
        compiling = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiling)
        folder = tempfile.mkdtemp()
        try:
            made = compiling.compile_into(Path(folder))
        except compiling.NotCompiledError as error:
            self.app.display_warning(f"a wheel of pure Python: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(path): str(path.relative_to(folder)) for path in made})
