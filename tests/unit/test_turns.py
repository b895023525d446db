"""Turns on a processor, as the kernel tells them."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading

import pytest

from feature_repo.contracts.turns import LONG_MS, take_turns_of
from serving.speed.giving_way import LowPriority
from tests.conftest import ROOT

_GET = {"x86_64": 315, "aarch64": 275}.get(platform.machine())
_CAN_TELL = sys.platform == "linux" and _GET is not None
_KEEPS_WISHES = _CAN_TELL and tuple(map(int, platform.release().split("-")[0].split(".")[:2])) >= (6, 12)

on_linux = pytest.mark.skipif(not _CAN_TELL, reason="only Linux is asked")
since_6_12 = pytest.mark.skipif(not _KEEPS_WISHES, reason="this kernel gives everybody the same turns")


def attributes() -> tuple[int, int, float]:
    """Policy, niceness and turn (ms) of the calling thread."""
    found = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(_GET, threading.get_native_id(), found, 56, 0) == 0
    _, policy, _, nice, _, nanoseconds, *_ = struct.unpack("=IIQiIQQQII", found.raw)
    return policy, nice, nanoseconds / 1e6


def in_a_thread(work: str) -> str:
    """What a program of its own prints."""
    code = f"from tests.unit.test_turns import *\n{work}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@since_6_12
def test_a_wish_is_heard_and_inherited_and_changes_nothing_else() -> None:
    said = in_a_thread(
        "os.nice(3); print(take_turns_of(50.0), attributes())\n"
        "thread = threading.Thread(target=lambda: print(attributes())); thread.start(); thread.join()\n"
        "print(take_turns_of(0.3), attributes())"
    )
    nice = min(19, os.nice(0) + 3)
    assert said.splitlines() == [f"True (0, {nice}, 50.0)", f"(0, {nice}, 50.0)", f"True (0, {nice}, 0.3)"]


@on_linux
def test_whoever_is_of_another_class_is_left_alone() -> None:
    said = in_a_thread(
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "print(take_turns_of(50.0), os.sched_getscheduler(0) == os.SCHED_IDLE)"
    )
    assert said == "False True"


@on_linux
def test_a_thread_that_is_not_there_is_no_error() -> None:
    assert take_turns_of(LONG_MS, thread=2**30) is False


@since_6_12
def test_a_backlog_takes_long_turns_and_its_process_does_not() -> None:
    before = attributes()
    backlog = LowPriority(10, longest_seconds=60)
    _, _, turn = backlog.call(attributes)
    backlog.close()
    assert turn == LONG_MS
    assert attributes() == before


@since_6_12
def test_a_job_of_the_night_takes_long_turns() -> None:
    said = in_a_thread("from spark_jobs.giving_way import give_way; give_way(); print(attributes())")
    assert said == f"(0, {max(10, os.nice(0))}, 50.0)"
