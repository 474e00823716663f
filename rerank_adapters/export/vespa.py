"""An application package for Vespa: a checked graph, its tokenizer, and texts that fit both."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..checkpoints import as_model_error
from ..config import RerankerConfig
from ..errors import ConfigError, ModelError
from ..families import Family
from ..loading import find, read
from ..tokenization import PairTokenizer

MOST_BYTES = 2**31 - 1
"""Of a graph for ranking, which must hold its weights itself: vespa docs, en/ranking/onnx."""

LONGEST = 512
"""Tokens of a pair where nothing is said: Vespa computes every one of them, padding too."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the texts are made of.

    cls, sep         the ids of the pair's frame
    double           whether two separators stand between query and document
    typed            whether the graph takes token_type_ids
    query_tokens     of the query that are kept
    document_tokens  of a document that are stored
    score            the rank expression over the graph's logits
    rerank_count     hits of the first phase that are scored
    """

    cls: int
    sep: int
    double: bool
    typed: bool
    query_tokens: int
    document_tokens: int
    score: str
    rerank_count: int

    @property
    def length(self) -> int:
        """Ids in one row: both texts and their frame."""
        return self.query_tokens + self.document_tokens + (4 if self.double else 3)


def write_application(
    exported: Path,
    folder: Path,
    file: str,
    *,
    query_tokens: int = 32,
    rerank_count: int = 100,
) -> Path:
    """Write an application package for the graph *file* of the folder *exported* into *folder*.

    models/model.onnx and models/tokenizer.json, services.xml, schemas/passage.sd, and
    best-paragraph.txt: a profile for documents of several paragraphs.

    Raises ModelError for what Vespa cannot load or would score otherwise: a graph of 2 GB or with
    weights beside it, pairs in a text template, a prompt, a frame other than BERT's or RoBERTa's.
    """
    for name, value in (("query_tokens", query_tokens), ("rerank_count", rerank_count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be an int of at least 1: got {value!r:.80}")
    config = RerankerConfig(model=str(exported), backend="onnx", device="cpu", file_name=file)
    meaning = read(find(config))
    typed = _check_graph(exported / file)
    profile = _profile(meaning.tokenizer, meaning.family, typed, query_tokens, rerank_count)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "schemas").mkdir(exist_ok=True)
    shutil.copyfile(exported / file, folder / "models" / "model.onnx")
    plain = json.loads(meaning.tokenizer.tokenizer_json) | {"truncation": None, "padding": None}
    texts = {
        "models/tokenizer.json": json.dumps(plain, ensure_ascii=False),
        "services.xml": SERVICES,
        "schemas/passage.sd": schema(profile),
        "best-paragraph.txt": best_paragraph(profile),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _check_graph(file: Path) -> bool:
    """Whether it takes token_type_ids. ModelError where Vespa cannot load it."""
    with as_model_error(f"the graph {file}"):
        graph = onnx.load(file, load_external_data=False).graph
    outside = [it.name for it in graph.initializer if it.data_location == onnx.TensorProto.EXTERNAL]
    if outside or file.stat().st_size > MOST_BYTES:
        raise ModelError(
            f"{file.name} must be one file below 2 GB for Vespa, its weights inside: got "
            f'{file.stat().st_size / 1e9:.1f} GB, {len(outside)} weights beside it; dtype="int8" '
            "is a quarter of float32"
        )
    names = [value.name for value in graph.input]
    if not set(names) <= set(INPUTS) or [it.name for it in graph.output] != ["logits"]:
        raise ModelError(f"{file.name} must take {', '.join(INPUTS)} and give logits: got {names}")
    return "token_type_ids" in names


def _profile(
    tokenizer: PairTokenizer, family: Family, typed: bool, query_tokens: int, rerank_count: int
) -> Profile:
    if family.template is not None or family.prompt or tokenizer.whole_pairs:
        raise ModelError(
            "Vespa puts token ids between special tokens: a model whose pairs stand in a text "
            "template, behind a prompt or in a frame of their own cannot be written for it"
        )
    frame = tokenizer.encode([("", "")]).batch.input_ids.tolist()
    if len(frame) not in (3, 4) or len(set(frame[1:])) != 1 or tokenizer.pad_side != "right":
        raise ModelError(
            "Vespa writes [CLS] query [SEP] document [SEP], or RoBERTa's form, padded behind: "
            f"this tokenizer's frame is {frame}, padded on the {tokenizer.pad_side}"
        )
    room = min(tokenizer.max_length, LONGEST) - len(frame) - query_tokens
    if room < 1:
        raise ConfigError(
            f"query_tokens must leave a document some of {tokenizer.max_length} tokens: got "
            f"{query_tokens}"
        )
    return Profile(
        cls=frame[0],
        sep=frame[1],
        double=len(frame) == 4,
        typed=typed,
        query_tokens=query_tokens,
        document_tokens=room,
        score=_score(family),
        rerank_count=rerank_count,
    )


def _score(family: Family) -> str:
    """The rank expression that says what the logits mean."""
    cells = [f"onnx(cross_encoder).logits{{d0:0,d1:{column}}}" for column in range(family.labels)]
    if family.labels > 2:
        raise ModelError(f"Vespa's profile has 1 or 2 labels: got {family.labels}")
    logit = cells[0] if family.labels == 1 else f"{cells[family.label]} - {cells[1 - family.label]}"
    if family.scale != 1:
        logit = f"{family.scale} * ({logit})"
    if family.activation == "identity":
        return logit
    if family.activation in ("sigmoid", "softmax"):  # softmax of two is the sigmoid of the lead
        return f"sigmoid({logit})"
    raise ModelError(f"Vespa's profile has no activation {family.activation!r}: pass activation=")


SERVICES = """\
<?xml version="1.0" encoding="UTF-8"?>
<services version="1.0">
    <container id="default" version="1.0">
        <component id="tokenizer" type="hugging-face-tokenizer">
            <model path="models/tokenizer.json"/>
        </component>
        <document-api/>
        <search/>
    </container>
    <content id="content" version="1.0">
        <min-redundancy>1</min-redundancy>
        <documents>
            <document type="passage" mode="index"/>
        </documents>
    </content>
</services>
"""


def schema(profile: Profile) -> str:
    """Return a schema whose documents are tokenised when they are fed, and its rank profile."""
    return f"""\
# Ask with: ranking=cross_encoder, input.query(q_tokens)=embed(tokenizer, @q), q=<the question>
schema passage {{
    document passage {{
        field id type string {{
            indexing: summary | attribute
        }}
        field text type string {{
            indexing: summary | index
            index: enable-bm25
        }}
    }}
    field tokens type tensor<float>(d0[{profile.document_tokens}]) {{
        indexing: input text | embed tokenizer | attribute
    }}
    fieldset default {{
        fields: text
    }}
{_indented(_rank_profile(profile, "cross_encoder", "default", "attribute(tokens)"))}
}}
"""


def best_paragraph(profile: Profile) -> str:
    """Return a profile that scores the one paragraph nearest to the query by its embedding."""
    made = _rank_profile(profile, "best_paragraph", "semantic", "best_tokens")
    phase = "    global-phase {"
    made = made.replace(phase, f"    match-features: closest(embedding)\n{phase}")
    extra = (
        "    function best_tokens() {\n"
        "        expression: reduce(closest(embedding) * attribute(tokens), max, p)\n"
        "    }\n"
    )
    at = made.index("    function input_ids()")
    return f"""\
# For a schema with paragraphs, an embedder of your own and a profile "semantic" that ranks by it:
#     field paragraphs type array<string> {{ indexing: summary | index }}
#     field embedding type tensor<float>(p{{}}, x[SIZE]) {{
#         indexing: input paragraphs | embed embedder | attribute | index
#     }}
#     field tokens type tensor<float>(p{{}}, d0[{profile.document_tokens}]) {{
#         indexing: input paragraphs | embed tokenizer | attribute
#     }}
# match-features: closest(embedding) says which paragraph was scored.
{made[:at]}{extra}{made[at:]}
"""


def _rank_profile(profile: Profile, name: str, parent: str, document: str) -> str:
    between = ["no_tokens"] if profile.double else []
    texts = ", ".join(["query(q_tokens)", *between, document])
    texts = f"{profile.length}, {texts}"
    functions = {
        "input_ids": f"customTokenInputIds({profile.cls}, {profile.sep}, {texts})",
        "attention_mask": f"tokenAttentionMask({texts})",
    }
    if profile.typed:
        functions["token_type_ids"] = f"tokenTypeIds({texts})"
    lines = [f"rank-profile {name} inherits {parent} {{", "    inputs {"]
    lines += [f"        query(q_tokens) tensor<float>(d0[{profile.query_tokens}])", "    }"]
    lines += ["    onnx-model cross_encoder {", "        file: models/model.onnx"]
    lines += [f"        input {it}: {it}" for it in functions]
    lines += ["        output logits: logits", "    }"]
    if profile.double:  # no id above 0: two separators stand next to each other
        functions = {"no_tokens": "tensor<float>(d0[1]):[0]", **functions}
    for function, expression in functions.items():
        lines += [f"    function {function}() {{", f"        expression: {expression}", "    }"]
    if parent == "default":
        lines += ["    first-phase {", "        expression: bm25(text)", "    }"]
    lines += ["    global-phase {", f"        rerank-count: {profile.rerank_count}"]
    lines += [f"        expression: {profile.score}", "    }", "}"]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in text.splitlines())
