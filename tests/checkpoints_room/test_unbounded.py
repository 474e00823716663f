"""A graph that would keep a runtime busy for ever is refused by its bytes."""

from __future__ import annotations

import faulthandler
import platform
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rerank_adapters import ModelError, Reranker
from rerank_adapters.checkpoints import check_bounded
from tests.exported import exported
from tests.fuzz import in_child

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def graph(*nodes: onnx.NodeProto, constants: dict[str, object] | None = None) -> onnx.ModelProto:
    """A model of one logit, the mean of the token ids, which *nodes* make of `mean`."""
    lead = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1], keepdims=1),
    ]
    return helper.make_model(
        helper.make_graph(
            [*lead, *nodes],
            "graph",
            [
                helper.make_tensor_value_info(it, TensorProto.INT64, ["batch", "sequence"])
                for it in INPUTS
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
            [
                numpy_helper.from_array(np.asarray(it), name)
                for name, it in (constants or {}).items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
        ir_version=8,
    )


def loop() -> onnx.NodeProto:
    """A node that adds its input to itself as often as `often` says."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Add", ["value", "value"], ["doubled"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("doubled", TensorProto.FLOAT, None),
        ],
    )
    return helper.make_node("Loop", ["often", "true", "mean"], ["logits"], body=body)


FOREVER = {"often": np.int64(2**62), "true": np.bool_(True)}


def in_a_branch() -> onnx.ModelProto:
    """The loop, where a condition chooses it."""
    output = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    branch = helper.make_graph([loop()], "branch", [], output)
    node = helper.make_node("If", ["true"], ["logits"], then_branch=branch, else_branch=branch)
    return graph(node, constants=FOREVER)


def functions(levels: int, calls: int) -> onnx.ModelProto:
    """*levels* functions, each of which calls the next one *calls* times."""
    model = graph(helper.make_node("F0", ["mean"], ["logits"], domain="own"))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for level in range(levels):
        last = level == levels - 1
        name, domain = ("Identity", "") if last else (f"F{level + 1}", "own")
        names = ["x", *(f"x{number}" for number in range(1, calls)), "y"]
        nodes = [
            helper.make_node(name, [names[at]], [names[at + 1]], domain=domain)
            for at in range(calls)
        ]
        made = helper.make_function("own", f"F{level}", ["x"], ["y"], nodes, opsets)
        model.functions.append(made)
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """An export of ours whose graph is *model*."""
    shutil.copytree(exported("bert"), folder)
    for file in folder.glob("*.onnx*"):
        file.unlink()
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: graph(loop(), constants=FOREVER), "must not loop"),
        (in_a_branch, "must not loop"),
        (lambda: functions(30, 2), "at most 1,000,000 nodes"),
        (lambda: functions(80, 1), "64 levels deep"),
    ],
    ids=["loop", "loop in a branch", "functions that double", "functions that nest"],
)
def test_what_does_not_end_is_refused(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], why: str
) -> None:
    """The runtime would run, or write functions out, until somebody ends the process."""
    with pytest.raises(ModelError, match=f"{why}.*export the model again"):
        Reranker(saved(make(), tmp_path / "model"), backend="onnx")


def test_functions_within_bounds_run(tmp_path: Path) -> None:
    """Ten levels that double are a thousand nodes, which change nothing: the mean of the ids."""
    folder = saved(functions(10, 2), tmp_path / "model")
    with Reranker(folder, backend="onnx", activation="identity") as reranker:
        got = reranker.score("a", ["b", "b c d"])
    plain = saved(functions(1, 1), tmp_path / "plain")
    with Reranker(plain, backend="onnx", activation="identity") as reranker:
        np.testing.assert_array_equal(got, reranker.score("a", ["b", "b c d"]))
    assert got[0] != got[1]


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\xca\x01", b"\x3a\xff\xff\xff\x7f\x00"])
def test_bytes_that_are_no_graph_pass(tmp_path: Path, content: bytes) -> None:
    """The runtime says what is wrong with them, as ever."""
    (tmp_path / "model.onnx").write_bytes(content)
    check_bounded(tmp_path / "model.onnx")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 traps at this division")
def test_the_crash_that_nothing_guards_is_still_one(tmp_path: Path) -> None:
    """CONTRIBUTING lists it: once onnxruntime raises here, take it off the list."""
    model = graph(
        helper.make_node("Div", ["least", "minus"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["added"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["mean", "added"], ["logits"]),
        constants={"least": np.int64(-(2**63)), "minus": np.int64(-1)},
    )
    folder = saved(model, tmp_path / "model")

    def load() -> str:
        faulthandler.disable()  # pytest's, which would fill the log
        Reranker(folder, backend="onnx").close()
        return "loaded"

    assert in_child(load) == f"BAD ended by signal {signal.SIGFPE.value}"
