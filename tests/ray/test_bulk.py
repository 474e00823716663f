"""Lists in bulk: equal to a Reranker's; bad rows, actors and drivers that die lose nothing."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from rerank_adapters import ConfigError, InputError, Reranker, RerankerConfig
from rerank_adapters.cli import main

ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from rerank_adapters.cli.app import bulk  # noqa: E402
from rerank_adapters.ray import Job, actors, rerank_dataset, rerank_files  # noqa: E402
from rerank_adapters.ray.notes import go_on  # noqa: E402

pytestmark = [
    pytest.mark.long("ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its own parts
    pytest.mark.usefixtures("cluster"),
]

ROOT = Path(__file__).parents[2]
BAD = {7: "query must not be blank", 9: "documents must be a sequence", 11: "documents[1] must be"}


def rows(count: int, *, bad: bool = False) -> list[dict[str, Any]]:
    made = [
        {
            "qid": f"q{n}",
            "query": f"how tall is tower {n}?",
            "documents": [f"Tower {n} is {n + at} m tall." * (at + 1) for at in range(4)] + [" "],
        }
        for n in range(count)
    ]
    if bad:
        made[7]["query"] = " "
        made[9]["documents"] = None
        made[11]["documents"] = ["a", None]
        made[12]["documents"] = []
    return made


def parquet(folder: Path, made: list[dict[str, Any]]) -> Path:
    file = folder / "in.parquet"
    pq.write_table(pa.Table.from_pylist(made), file)
    return file


def check(found: list[dict[str, Any]], made: list[dict[str, Any]], **cut: Any) -> None:
    """Every row is there once, with a Reranker's own ranking.

    Bit for bit: int8 scores do not depend on who shares a batch (law 2).
    """
    by_id = {row["qid"]: row for row in found}
    assert len(found) == len(by_id) == len(made)
    with Reranker() as reranker:
        for row in made:
            got = by_id[row["qid"]]
            if got["error"] is not None:
                assert (got["indices"], got["relevance_scores"], got["truncated"]) == (None,) * 3
                continue
            ranking = reranker.rerank(row["query"], row["documents"], **cut)
            assert got["indices"] == [it.index for it in ranking]
            assert got["relevance_scores"] == [float(it.score) for it in ranking]
            assert got["truncated"] == [it.truncated for it in ranking]


def until(holds: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_rows_are_a_rerankers_and_bad_ones_carry_their_error() -> None:
    """Two actors, batches of eight, a cut; what is wrong with a row stands in it alone."""
    made = rows(30, bad=True)
    cut = {"top_n": 3, "score_threshold": 0.001}
    dataset = ray.data.from_items(made, override_num_blocks=4)
    found = rerank_dataset(dataset, Job(num_actors=2, batch_size=8, **cut)).take_all()
    check(found, made, **cut)
    errors = {int(row["qid"][1:]): row["error"] for row in found if row["error"]}
    assert errors.keys() == BAD.keys()
    for number, words in BAD.items():
        assert errors[number].startswith(f"InputError: {words}")


def test_an_actor_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """Kill -9 in the middle: its rows are ranked by another, each is there once."""
    made = rows(300)
    source, target = parquet(tmp_path, made), tmp_path / "out"
    job = Job(num_actors=2, batch_size=10)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            rerank_files(source, target, job)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: len(list(target.glob("*.parquet"))) >= 2 or bool(failed))
    killed = [it for it in psutil.process_iter() if "MapWorker(MapBatches(_Actor)" in _title(it)]
    assert killed, failed
    assert len(list(target.glob("*.parquet"))) < len(made) / job.batch_size
    os.kill(killed[0].pid, signal.SIGKILL)
    thread.join(300)
    assert not failed
    check(pq.read_table(target).to_pylist(), made)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_a_job_goes_on_after_its_driver_was_killed(tmp_path: Path, cluster: str) -> None:
    """What is on disk stays as it is, the rest is ranked; a third run finds nothing to do."""
    made = rows(300)
    source, target = parquet(tmp_path, made), tmp_path / "out"
    code = (
        "import sys; from rerank_adapters.ray import Job, rerank_files;"
        "rerank_files(sys.argv[1], sys.argv[2], Job(num_actors=2, batch_size=10))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(source), str(target)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    noted = tmp_path / "out.checkpoint"
    until(lambda: len(list(noted.rglob("*.parquet"))) >= 3 or driver.poll() is not None)
    driver.kill()
    assert driver.wait(30) == -signal.SIGKILL
    time.sleep(2)  # what was being written ends, or not
    job = Job(num_actors=2, batch_size=10)
    before = {file: file.stat().st_mtime_ns for file in target.glob("*.parquet")}
    done = pq.read_table(target).num_rows
    assert 0 < done < len(made)
    rerank_files(source, target, job)
    kept = {file for file, at in before.items() if file.exists() and file.stat().st_mtime_ns == at}
    assert kept, "nothing was taken over"
    check(pq.read_table(target).to_pylist(), made)
    rerank_files(source, target, job)
    assert pq.read_table(target).num_rows == len(made)


def test_the_command_ranks_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TREC in and out, joined with its texts; a Reranker has the same order and scores."""
    texts = {f"d{n}": f"Tower {n} is {n} m tall." for n in range(6)}
    asked = {f"q{n}": f"how tall is tower {n}?" for n in range(5)}
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": it, "text": text}) + "\n" for it, text in texts.items())
    )
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": it, "text": text}) + "\n" for it, text in asked.items())
    )
    (tmp_path / "in.run").write_text(
        "".join(
            f"{query} Q0 {name} {rank} {9 - rank} bm25\n"
            for query in asked
            for rank, name in enumerate(texts, 1)
        )
    )
    paths = [
        str(tmp_path / name) for name in ("in.run", "out.run", "corpus.jsonl", "queries.jsonl")
    ]
    command = ["bulk", *paths[:2], "--corpus", paths[2], "--queries", paths[3], "--json"]
    for _ in range(2):  # the second finds all done, and writes the run anew
        (tmp_path / "out.run").unlink(missing_ok=True)
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--top-n", "4", "--candidates", "5", "--batch-size", "2"])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 5
    with pytest.raises(SystemExit, match="2"):  # other lists: what is there is not taken for them
        main([*command, "--top-n", "4", "--candidates", "6", "--batch-size", "2"])
    assert "where rows or options differ" in capsys.readouterr().err
    lines = [line.split() for line in (tmp_path / "out.run").read_text().splitlines()]
    names = list(texts)[:5]
    with Reranker() as reranker:
        for query, text in asked.items():
            ranking = reranker.rerank(text, [texts[name] for name in names], top_n=4)
            got = [(it[2], float(it[4])) for it in lines if it[0] == query]
            assert [name for name, _ in got] == [names[it.index] for it in ranking]
            assert [score for _, score in got] == pytest.approx([it.score for it in ranking], 1e-8)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"num_actors": 0}, ConfigError, "num_actors must be an int of at least 1: got 0"),
        ({"batch_size": True}, ConfigError, "batch_size must be an int of at least 1: got True"),
        ({"cpus_per_actor": -1}, ConfigError, "cpus_per_actor must be a number of at least 0"),
        ({"num_actors": 9}, ConfigError, "the cluster must have 11 CPUs, two of them beside"),
        ({"gpus_per_actor": 1.0}, ConfigError, "the cluster must have 1 GPUs: got 0"),
        ({"top_n": 0}, InputError, "top_n must be"),
        ({"ids": "query_id"}, InputError, "ids must name a column"),
        ({"ids": "same"}, InputError, "ids must tell rows apart"),
        ({"documents": "texts"}, InputError, "must have a column 'texts': got"),
        ({"error": "same"}, InputError, "must have no column 'same': rename it"),
        ({"config": "bge"}, ConfigError, "config must be a RerankerConfig: got 'bge'"),
        ({"config": RerankerConfig(token="x")}, ConfigError, "token must be None"),
        ({"config": RerankerConfig(cache={"bytes": 9999})}, ConfigError, "cache must be None"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """Nothing is written."""
    source = parquet(tmp_path, [{**row, "same": 1} for row in rows(3)])
    options = {"ids": "qid", **options}
    with pytest.raises(kind, match=words):
        rerank_files(source, tmp_path / "out", ids=options.pop("ids"), job=Job(**options))
    assert not (tmp_path / "out").exists()


def test_a_job_is_a_job() -> None:
    """What else is handed in its place is named; the command has its names and defaults."""
    with pytest.raises(ConfigError, match="job must be a Job: got RerankerConfig"):
        rerank_files("in", "out", RerankerConfig())  # type: ignore[arg-type]
    flags = inspect.signature(bulk).parameters
    for it in fields(Job):
        if it.name != "config":
            assert flags[it.name].default == it.default


def test_another_jobs_folder_is_not_written_into(tmp_path: Path) -> None:
    """Without its checkpoint nobody knows what is in it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.parquet").write_text("")
    with pytest.raises(InputError, match="target must be a new folder"):
        rerank_files(parquet(tmp_path, rows(3)), tmp_path / "out")


def test_a_job_of_other_options_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models' scores in one folder would be told apart by nobody; paths are from here on."""
    monkeypatch.chdir(tmp_path)
    source, target = Path(parquet(tmp_path, rows(3)).name), "out/"
    rerank_files(source, target)
    with pytest.raises(InputError, match="where rows or options differ"):
        rerank_files(source, target, Job(config=RerankerConfig(max_length=64)))
    check(pq.read_table(target).to_pylist(), rows(3))
    shutil.rmtree(target)
    with pytest.raises(InputError, match=r"out.checkpoint says is done: remove that too"):
        rerank_files(source, target)


def test_rows_may_be_added_and_not_changed(tmp_path: Path) -> None:
    """Files are told by what is in them, wherever they lie; where nothing is noted, go on."""
    source, target, done = (tmp_path / name for name in ("in", "out", "out.checkpoint"))
    for folder in (source, target, done):
        folder.mkdir()
    go_on_with = partial(go_on, target=str(target), checkpoint=str(done), options="these")
    made = rows(6)
    pq.write_table(pa.Table.from_pylist(made[:3]), source / "a.parquet")
    (done / "0_1.pending.parquet").write_text("")  # of a driver that was killed early
    go_on_with(str(source))
    (target / "0_0.parquet").write_text("")
    (source / "a.parquet").rename(source / "b.parquet")
    pq.write_table(pa.Table.from_pylist(made[3:]), source / "c.parquet")
    go_on_with(str(source))
    made[4]["documents"] = [text.replace("tall", "high") for text in made[4]["documents"]]
    pq.write_table(pa.Table.from_pylist(made[3:]), source / "c.parquet")
    with pytest.raises(InputError, match="where rows or options differ"):
        go_on_with(str(source))
    (tmp_path / "out.job").unlink()
    go_on_with(str(source))
    with pytest.raises(InputError, match="where rows or options differ"):
        go_on_with(str(source), options="others")


def test_an_engine_takes_its_share_of_the_threads() -> None:
    """Where nobody said it, and the backend is one that is told."""
    default = RerankerConfig()
    assert actors.travelling(default, 2.0, 0).num_threads == 2
    assert actors.travelling(default, 0.5, 0).num_threads == 1
    assert actors.travelling(RerankerConfig(num_threads=3), 2.0, 0).num_threads == 3
    assert actors.travelling(RerankerConfig(backend="torch"), 2.0, 0).num_threads is None
    assert actors.travelling(default, 2.0, 1).num_threads is None


@pytest.mark.parametrize(
    ("address", "words"), [("", "a Ray of one's"), ("auto", "RAY_ADDRESS=auto")]
)
def test_a_ray_that_does_not_start_is_told_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    words: str,
) -> None:
    """On a machine that is busy Ray raises a plain Exception, without a cluster another kind."""

    def init(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SystemExit, match="2"):
        main(["bulk", str(parquet(tmp_path, rows(2))), str(tmp_path / "out")])
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert f"{words} " in told
    assert "must start: The current node timed out" in told


def test_who_imports_the_room_sends_no_statistics(tmp_path: Path) -> None:
    """Before Ray starts, whoever starts it."""
    code = "import os, rerank_adapters.ray; print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    for said, found in (({}, "0"), ({actors.STATISTICS: "1"}, "1")):
        environ = {name: it for name, it in os.environ.items() if name != actors.STATISTICS}
        environ |= {"RAY_USAGE_STATS_CONFIG_PATH": str(tmp_path / "none"), **said}
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, check=True)
        assert ran.stdout.decode().strip() == found


def test_usage_statistics_are_off_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their environment and their file count; a file that says nothing of it does not."""
    monkeypatch.setenv("RAY_USAGE_STATS_CONFIG_PATH", str(tmp_path / "config.json"))
    monkeypatch.setenv(actors.STATISTICS, "1")
    actors.keep_statistics_home()
    assert os.environ[actors.STATISTICS] == "1"
    monkeypatch.delenv(actors.STATISTICS)
    (tmp_path / "config.json").write_text('{"usage_stats": true}')
    actors.keep_statistics_home()
    assert actors.STATISTICS not in os.environ
    for other in ("{}", "no JSON"):
        (tmp_path / "config.json").write_text(other)
        actors.keep_statistics_home()
        assert os.environ.pop(actors.STATISTICS) == "0"
    (tmp_path / "config.json").unlink()
    actors.keep_statistics_home()
    assert os.environ.pop(actors.STATISTICS) == "0"
