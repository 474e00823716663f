"""Damaged checkpoints by seed: each is loaded and asked in a child of its own, with 1 GB at most.

`python -m tests.fuzz SEED COUNT BACKEND` prints how they ended; what ended badly has its seed. A
child is forked from a process that has imported everything, so that it costs milliseconds.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx

from rerank_adapters import Reranker, RerankError

ROOM = 1_000_000_000
"""Bytes of address space that a child may take beyond what it was forked with."""

SECONDS = 60.0
"""After which a child hangs."""

QUESTION, DOCUMENTS = "what barks?", ["a dog barks", "rain", "tea " * 50]
JUNK = (
    *(
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        10**400,
        1e308,
        float("inf"),
        float("nan"),
        "",
        "\0",
        "é" * 9,
    ),
    *([], {}, [[]], {"a": []}, "../../etc/passwd", "[PAD]", "x" * 10_000, ["a"] * 1000),
)


def damage(folder: Path, seed: int) -> str:
    """Change one thing in one file of *folder*; return what, for people."""
    rng = random.Random(seed)
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    way = rng.choice([_flip, _cut, _grow, _payload, _json, _json, _json])
    return f"{file.name}: {way(file, rng)}"


def _flip(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes() or b"\0")
    for _ in range(rng.choice([1, 1, 3, 30])):
        # the beginning of a file says more than its middle
        at = rng.randrange(min(len(data), rng.choice([64, 2000, len(data)])))
        data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return "bits flipped"


def _cut(file: Path, rng: random.Random) -> str:
    size = rng.choice([0, 1, 8, rng.randrange(file.stat().st_size + 1)])
    file.write_bytes(file.read_bytes()[:size])
    return f"cut to {size}"


def _grow(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    added = rng.choice([b"\0" * 100, b"[" * 100_000, data, rng.randbytes(1000)])
    file.write_bytes(added + data if rng.random() < 0.5 else data + added)
    return "more before or after"


def _payload(file: Path, rng: random.Random) -> str:
    """Weights alone: their bytes become anything."""
    data = bytearray(file.read_bytes())
    start, stop = len(data) // 3, len(data)
    if file.suffix == ".safetensors":
        start = 8 + struct.unpack("<Q", data[:8])[0]
    elif file.suffix == ".onnx":
        raw = max((it.raw_data for it in onnx.load(file).graph.initializer), key=len)
        start = data.index(raw)
        stop = start + len(raw)
    else:
        return _flip(file, rng)
    at = rng.randrange(start, stop)
    size = min(rng.choice([1, 4, 400]), stop - at)
    data[at : at + size] = rng.choice([b"\xff", b"\x7f", b"\0"]) * size
    file.write_bytes(data)
    return f"{size} bytes of weights"


def _json(file: Path, rng: random.Random) -> str:
    if file.suffix != ".json":
        return _flip(file, rng)
    content = json.loads(file.read_text("utf-8"))
    parent, key = _spot(content, rng)
    if parent is None:
        return _cut(file, rng)
    change = rng.choice(["drop", "junk", "junk", "deep"])
    if change == "drop":
        del parent[key]
    else:
        parent[key] = rng.choice(JUNK) if change == "junk" else _deep(rng)
    sys.set_int_max_str_digits(0)
    file.write_text(json.dumps(content), "utf-8", errors="surrogatepass")
    return f"{key!r} {change}"


def _spot(content: object, rng: random.Random) -> tuple[object, object]:
    """A container in *content* and a key of it, near the top as often as far down."""
    found: tuple[object, object] = (None, None)
    while isinstance(content, dict | list) and content:
        key = (
            rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        )
        found = (content, key)
        content = content[key]  # type: ignore[index, call-overload]
        if rng.random() < 0.4:
            break
    return found


def _deep(rng: random.Random) -> object:
    value: object = 1
    for _ in range(rng.choice([200, 900])):
        value = [value]
    return value


def ask(folder: Path, backend: str) -> list[float]:
    """The scores of *folder*."""
    with Reranker(str(folder), backend=backend, device="cpu", num_threads=None) as reranker:
        return [float(score) for score in reranker.score(QUESTION, DOCUMENTS)]


def try_one(source: Path, backend: str, seed: int, base: list[float]) -> str:
    """Damage a copy of *source* and ask it in a child: how that ended, in a word or two."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        folder = Path(shutil.copytree(source, place / "model"))
        what = damage(folder, seed)
        return f"{in_child(lambda: _verdict(folder, backend, base))} [{backend} {seed}: {what}]"
    finally:
        shutil.rmtree(place)


def _verdict(folder: Path, backend: str, base: list[float]) -> str:
    try:
        scores = ask(folder, backend)
    except RerankError as error:
        return f"refused as {type(error).__name__}"
    except BaseException as error:  # whatever it is, it is what is looked for
        return f"BAD {type(error).__name__}: {traceback.format_exc()[-700:]}"
    if not all(map(math.isfinite, scores)):
        return f"BAD scores {scores}"
    same = all(abs(one - two) < 1e-6 for one, two in zip(scores, base, strict=True))
    return "scored as before" if same else "scored otherwise"


def in_child(work: Callable[[], str]) -> str:
    """What *work* returns in a fork with ROOM and SECONDS, or how it ended badly."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(writer, work().encode("utf-8", "replace")[:2000])
        os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            return f"BAD hangs for {SECONDS:.0f} s"
        told = os.read(reader, 4000).decode()
    finally:
        os.close(reader)
        status = os.waitpid(child, 0)[1]
    return told or f"BAD ended by signal {os.WTERMSIG(status)}"


def run(source: Path, backend: str, seeds: range) -> Counter[str]:
    """How each seed ended; what ended badly has a line of its own."""
    base = json.loads(in_child(lambda: json.dumps(ask(source, backend))))
    ended: Counter[str] = Counter()
    for seed in seeds:
        told = try_one(source, backend, seed, base)
        ended[told if told.startswith("BAD") else told.partition(" [")[0]] += 1
    return ended


if __name__ == "__main__":
    from tests.checkpoints import build
    from tests.exported import exported

    first, count, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    model = exported("bert") if name == "onnx" else build("bert")
    for told, times in run(model, name, range(first, first + count)).most_common():
        print(times, told)
