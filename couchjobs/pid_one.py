"""PID 1 of a container: it passes signals on, and takes the exits of processes that nobody else waits for.

A process whose parent has ended belongs to PID 1, and stays a zombie until that one asks for its exit. A daemon cannot
ask: it would take the exits of its children from what waits for them. So where it is started as PID 1 it goes on in a
child process, and nothing but what is here stays behind.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_KILLED = 128
"""What a shell adds to the number of the signal by which a process has ended."""


def leave_pid_one() -> None:
    """Return in a process that is not PID 1; PID 1 itself ends with what that one ends with. To be called first."""
    if os.getpid() == 1:
        stay_behind()


def stay_behind() -> None:
    """Go on in a child process; this one passes signals on to it, and ends as it does."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # else a terminal's Ctrl-C would come twice
    else:
        _wait_for(child)


def _wait_for(child: int) -> NoReturn:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else _KILLED - code)
