"""wrk, the compiled load generator, with requests that were made beforehand: it only sends them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from feature_repo.contracts.errors import DependencyError
from infra.bench.events.load import Load

_LINE = "NIGHTJAR "
_SCRIPT = """-- Sends the bodies of NIGHTJAR_BODIES (a line each) in order, again and again, with the key NIGHTJAR_KEY.
local requests, at = {}, 0

function init(args)
  local headers = {["Content-Type"] = "application/json"}
  if os.getenv("NIGHTJAR_KEY") ~= "" then headers["Authorization"] = "Bearer " .. os.getenv("NIGHTJAR_KEY") end
  for body in io.lines(os.getenv("NIGHTJAR_BODIES")) do
    requests[#requests + 1] = wrk.format("POST", "/v1/recommendations", headers, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('NIGHTJAR {"requests":%d,"seconds":%.6f,"errors":%d,"p50_ms":%.3f,"p99_ms":%.3f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


def require_wrk() -> str:
    """Where wrk is. Raises DependencyError with the way to get it."""
    found = shutil.which("wrk")
    if found is None:
        raise DependencyError(
            "this bench sends with wrk, which is not on PATH. Install it (Debian, Ubuntu: `apt install wrk`; macOS: "
            "`brew install wrk`)."
        )
    return found


def write_load(folder: Path, name: str, bodies: Sequence[Mapping[str, Any]]) -> Path:
    """The file of the bodies, and the script beside it."""
    (folder / "send.lua").write_text(_SCRIPT)
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(body) for body in bodies) + b"\n")
    return path


def send_load(port: int, bodies: Path, *, seconds: int, connections: int, cores: Sequence[int], key: str = "") -> Load:
    """A closed loop: each connection sends its next request when it has the answer. wrk has one thread on `cores`.
    `key`: the API key that goes with each request; none where it is empty."""
    command = [require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(bodies.with_name("send.lua")), f"http://127.0.0.1:{port}"]
    variables = {**os.environ, "NIGHTJAR_BODIES": str(bodies), "NIGHTJAR_KEY": key}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    output, _ = process.communicate(timeout=seconds + 60)
    found = [line.removeprefix(_LINE) for line in output.splitlines() if line.startswith(_LINE)]
    if process.returncode != 0 or len(found) != 1:
        raise DependencyError(f"wrk ended with {process.returncode} and said: {output[-500:]}")
    return Load(**json.loads(found[0]))
