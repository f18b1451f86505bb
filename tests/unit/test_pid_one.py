"""What couchjobs does where it is PID 1 of a container."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here, as they come to PID 1
from couchjobs.pid_one import stay_behind
first = os.getpid()
stay_behind()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
read, write = os.pipe()
parent = os.fork()
if parent == 0:
    orphan = os.fork()
    if orphan == 0:
        os._exit(0)
    os.write(write, str(orphan).encode())
    os._exit(0)
os.waitpid(parent, 0)
orphan = int(os.read(read, 20))
deadline = time.monotonic() + 10
while os.path.exists(f"/proc/{orphan}"):
    if time.monotonic() > deadline:
        sys.exit("a zombie stays")
    time.sleep(0.01)
os.kill(first, int(sys.argv[1]))
time.sleep(10)
"""


def test_pid_one_when_a_process_is_orphaned_then_its_exit_is_taken_and_signals_reach_the_daemon() -> None:
    """Its own exit code is that of what it has started; 137 where that was killed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "15"], check=False, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (7, "")
    killed = PROGRAM.replace("os.kill(first, int(sys.argv[1]))", "os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", killed], check=False, timeout=30).returncode == 137
