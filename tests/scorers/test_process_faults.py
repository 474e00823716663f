"""Faults that happen to whole processes: Ctrl-C, fork, exit. Each has an interpreter of its own.

The scripts print "ok" when all went as it should; an alarm ends whatever hangs.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scorers.fault_table import backends_for
from tests.scorers.tapped import checkpoint

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
from rerank_adapters.errors import ClosedError
from tests.scorers.tap import tap_into

backend, folder, mode = sys.argv[1:4]
signal.alarm(300)  # a hang ends the process, and the test
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
query, texts = "how do whales breathe", [f"document {n} on whales" for n in range(30)]


def in_child(work, leave=sys.exit):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(100)
    work()
    leave(0)  # sys.exit: a real exit, with all its handlers


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(script: str, backend: str, mode: str = "") -> subprocess.CompletedProcess[str]:
    arguments = (backend, checkpoint(backend), mode)
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def assert_ok(done: subprocess.CompletedProcess[str], *, code: int = 0) -> None:
    assert "ok" in done.stdout, done.stderr
    assert done.returncode == code, done.stderr
    for words in ("terminate called", "Fatal Python error", "never retrieved", "Segmentation"):
        assert words not in done.stderr


CTRL_C = """
reranker, tap = tap_into(backend, folder)
main = threading.get_ident()


def interrupt():
    tap.entered.wait(60)
    while True:  # until the main thread waits for scores: for a thread to start it waits as well
        frame = sys._current_frames()[main]
        if frame.f_code.co_name == "wait" and frame.f_back.f_code.co_name == "result":
            break
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
    if mode == "uncaught":
        tap.release.set()


threading.Thread(target=interrupt, daemon=True).start()
tap.release.clear()
if mode == "uncaught":
    print("ok", flush=True)
    reranker.score(query, texts)
try:
    reranker.score(query, [f"{text} {n}" for n in range(50) for text in texts])
except KeyboardInterrupt:
    assert reranker.stats()["cancelled"] == 1
    assert reranker.stats()["queue_pairs"] == 0
tap.release.set()
before = len(tap.sizes)
assert np.isfinite(reranker.score(query, texts)).all()
assert tap.sizes[before:] == [30], tap.sizes
print("ok")
"""


@pytest.mark.parametrize("backend", backends_for(12))
def test_12_keyboard_interrupt_cancels_what_was_waited_for(backend):
    """Ctrl-C in a waiting caller drops its 1500 pairs; the reranker goes on; exit code 0."""
    assert_ok(run(CTRL_C, backend))


@pytest.mark.parametrize("backend", backends_for(12))
def test_12_keyboard_interrupt_uncaught_ends_the_process_properly(backend):
    """Uncaught, it ends the process as SIGINT does (130 in a shell), not by an abort (134)."""
    assert_ok(run(CTRL_C, backend, "uncaught"), code=-signal.SIGINT)


FORK = """
import asyncio

reranker, tap = tap_into(backend, folder)
expected = None if mode == "unused" else reranker.score(query, texts)


def work():
    if backend == "torch":
        try:
            reranker.score(query, texts)
        except ClosedError as error:
            assert "load the model in the child process" in str(error), error
            return
        raise AssertionError("torch was used in a forked child")
    scores = reranker.score(query, texts)
    assert expected is None or np.array_equal(scores, expected)
    assert np.array_equal(asyncio.run(reranker.ascore(query, texts)), scores)
    assert len(reranker.rerank(query, texts, timeout=60)) == len(texts)


def work_without_the_parents_requests():
    for future in futures:
        try:
            future.result(60)
        except ClosedError as error:
            assert "before the process forked" in str(error), error
        else:
            raise AssertionError("a child got the parent's scores")
    tap.release.set()
    work()


if mode == "busy":  # one request is in the forward and five are queued
    with tap.held():
        futures = [reranker.submit(query, texts)]
        assert tap.entered.wait(60)
        futures += [reranker.submit(query, texts) for _ in range(5)]
        codes = [exit_code(in_child(work_without_the_parents_requests))]
    for future in futures:
        scores = [it.score for it in sorted(future.result(60), key=lambda it: it.index)]
        assert np.allclose(scores, expected, atol=1e-4)
elif mode == "thread":  # a thread that is not the main one forks
    codes = []
    thread = threading.Thread(target=lambda: codes.append(exit_code(in_child(work, os._exit))))
    thread.start()
    thread.join()
else:
    codes = [exit_code(in_child(work)) for _ in range(3)]
assert codes == [0] * len(codes), codes
again = reranker.score(query, texts)
assert expected is None or np.array_equal(again, expected)  # the parent did not notice
reranker.close()
print("ok")
"""


@pytest.mark.parametrize("backend", backends_for(14))
@pytest.mark.parametrize("mode", ["used", "unused", "thread", "busy"])
def test_14_fork_gives_a_working_engine_or_a_clear_error(backend, mode):
    """A forked child scores (stub, onnx) or is told to load its own (torch); it never hangs."""
    if backend == "torch" and mode in ("unused", "thread"):
        pytest.skip("refused in the same place as after use; loading torch costs 5 s")
    assert_ok(run(FORK, backend, mode))


MULTIPROCESSING = """
import multiprocessing

import tests.scorers.child

reranker, _ = tap_into(backend, folder)
expected = reranker.score(query, texts)
inherited = reranker if mode == "fork" else None
process = multiprocessing.get_context(mode).Process(
    target=tests.scorers.child.check, args=(backend, folder, query, texts, expected, inherited)
)
process.start()
process.join()
assert process.exitcode == 0, process.exitcode
assert np.array_equal(reranker.score(query, texts), expected)
print("ok")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_14_fork_by_multiprocessing(method):
    """A forked child uses the parent's reranker, a spawned one loads its own."""
    assert_ok(run(MULTIPROCESSING, "onnx", method))


EXIT = """
import rerank_adapters.backends.onnx

if backend == "torch":
    import rerank_adapters.backends.torch

long_texts = [f"document {n} on whales " + "and the sea " * 100 for n in range(300)]


def leave():
    reranker, tap = tap_into(backend, folder)
    if backend == "stub":
        tap.edit = lambda batch, logits: (time.sleep(0.05), logits)[1]
    if number % 3 == 0:  # a daemon thread waits for scores that will not come
        threading.Thread(target=reranker.score, args=(query, long_texts), daemon=True).start()
    else:
        reranker.submit(query, long_texts, timeout=60)
    assert tap.entered.wait(60)
    if number % 3 == 1:
        reranker.close()


repeats, codes = int(mode), []
for number in range(repeats):
    codes.append(exit_code(in_child(leave)))
assert codes == [0] * repeats, codes
print("ok")
"""


@pytest.mark.parametrize(("backend", "repeats"), [("stub", 50), ("onnx", 50), ("torch", 8)])
def test_15_exit_with_work_in_flight(backend, repeats):
    """Interpreters that end while a batch runs, with and without close(), end with code 0."""
    assert backend in backends_for(15)
    assert_ok(run(EXIT, backend, str(repeats)))
