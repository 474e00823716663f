"""An engine in a forked child, and at the interpreter's exit; each script has its own interpreter.

The same on real backends is in tests/scorers/test_process_faults.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, signal, sys, threading
import numpy as np
from rerank_adapters import futures
from rerank_adapters.errors import ClosedError
from tests.engine.traffic import PATIENCE, Held, Scheduler, checksum, request, until

signal.alarm(200)  # a hang ends the process, and the test


def exit_code(work):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(100)
    work()
    sys.exit(0)


def refused(call, words):
    try:
        call()
    except ClosedError as error:
        assert words in str(error), error
        return
    raise AssertionError("not refused")
"""

BUSY = """
held = Held()
scheduler = Scheduler([held], max_queue_pairs=1)
futures_ = [scheduler.submit(request([1]))]
assert held.entered.wait(PATIENCE)
futures_.append(scheduler.submit(request([2])))  # fills the queue
futures_.append(scheduler.submit_call(lambda: request([3])))  # waits in line
until(lambda: scheduler.stats()["parked"] == 1)
ticket = scheduler.admission.reserve(1, None)


def work():
    for future in (*futures_, ticket):
        refused(lambda: future.result(PATIENCE), "before the process forked")
    stats = scheduler.stats()
    assert [stats[name] for name in ("queue_pairs", "parked", "unfinished")] == [0, 0, 0], stats
    for encoded in (request([4]), request([5] * 30)):
        scores = scheduler.submit(encoded, timeout=PATIENCE).result(PATIENCE)
        assert np.array_equal(scores, checksum(encoded))
        scores = scheduler.submit_call(lambda: encoded).result(PATIENCE)
        assert np.array_equal(scores, checksum(encoded))
    assert scheduler.admission.used(ticket)


assert exit_code(work) == 0
held.release.set()
for future in futures_:
    assert future.result(PATIENCE).shape == (1,)
assert scheduler.admission.submit(request([6]), ticket=ticket).result(PATIENCE).shape == (1,)
scheduler.close()
print("ok")
"""

REFUSED = """
ended = []
scheduler = Scheduler([checksum], survives_fork=False, on_close=lambda: ended.append(os.getpid()))
scheduler.submit(request([1])).result(PATIENCE)


def work():
    refused(lambda: scheduler.submit(request([1])), "load the model in the child process")
    assert scheduler.closed
    scheduler.close()
    assert ended == []  # the parent's runtime is never freed here


assert exit_code(work) == 0
assert scheduler.submit(request([1])).result(PATIENCE).shape == (1,)
scheduler.close()
assert ended == [os.getpid()]
assert exit_code(lambda: refused(lambda: scheduler.submit(request([1])), "is closed")) == 0
print("ok")
"""

EXIT = """
import atexit

def late():
    # What was registered before the first request runs after the engine's own end.
    assert scheduler.closed
    assert not [it for it in threading.enumerate() if it.name.startswith("rerank-worker")]
    print("ok", flush=True)


atexit.register(late)
held = Held()
scheduler = Scheduler([held])
scheduler.submit(request([1]), timeout=PATIENCE)
assert held.entered.wait(PATIENCE)
waiting = scheduler.submit(request([1] * 100))
threading.Timer(0.05, held.release.set).start()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("script", [BUSY, REFUSED], ids=["busy", "refused"])
def test_14_fork_starts_over_or_is_refused(script):
    """A child has no request of its parent, and goes on where the forwards survive."""
    _assert_ok(script)


def test_15_exit_ends_the_workers_first():
    """An interpreter that ends with work in flight waits for the batch, then goes with code 0."""
    _assert_ok(EXIT)


def _assert_ok(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "ok" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
