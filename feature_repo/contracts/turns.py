"""How long a turn on a processor work asks the kernel for that nobody waits for.

Since 6.6 Linux lets whoever runs finish a turn (1.4 ms on two processors, more on more) before it looks at who has
woken up, however nice the one is and however urgent the other. Since 6.12 a thread may say how long its turns are, and
one that wakes up with shorter turns than the one that runs is run at once. So work in the background asks for long
turns: it loses nothing by that but its turn, whenever somebody else has work. Shares of the processor are as before.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading

LONG_MS = 50.0
"""Of work in the background. The kernel takes 0.1 to 100 ms."""

_SET = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period (ns), two bounds of use."""


def take_turns_of(milliseconds: float, *, thread: int = 0) -> bool:
    """Ask for it, for a thread (its id; 0: the calling one) and what it starts from then on; whether that was heard.

    A kernel that knows no such wish hears and forgets it. False where there is no Linux, no permission, or where the
    thread is none of those that share processors fairly.
    """
    if _SET is None or sys.platform != "linux":
        return False
    thread = thread or threading.get_native_id()
    try:
        policy, nice = os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)
        if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
            return False
        wish = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, nice, 0, int(milliseconds * 1e6), 0, 0, 0, 0)
        return ctypes.CDLL(None).syscall(_SET, thread, wish, 0) == 0
    except (OSError, AttributeError):
        return False
