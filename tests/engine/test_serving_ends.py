"""A server that does not end when it is told to, and what it started, are ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from squeezeattention.engine import serving

#: Ignores what tells it to end, has a child that does so too, and says when both are there.
STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
child = os.fork()
if child:
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(child))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(120)
"""


def told(path, signals):
    """Send this process SIGTERM so often, once the server has started."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
@pytest.mark.parametrize(("signals", "grace"), [(1, 0.5), (2, 60.0)])
def test_a_server_that_goes_on_is_ended_with_its_processes(signals, grace, tmp_path, monkeypatch):
    """After its time, or at a second signal."""
    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    monkeypatch.setattr(serving, "_GRACE", grace)
    monkeypatch.setattr(serving, "_LOOK", 0.1)
    path = tmp_path / "child"
    teller = threading.Thread(target=told, args=(path, signals))
    teller.start()
    code = serving.run_server([sys.executable, "-c", STUBBORN, str(path)], "127.0.0.1")
    teller.join()
    assert code == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_running(int(path.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(path.read_text()))
