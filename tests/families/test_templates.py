"""Chat templates come down to the text around a query and a document, or are refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from rerank_adapters.errors import ModelError
from rerank_adapters.families import render_template
from rerank_adapters.tokenization import TextTemplate

PICK = '{{ messages | selectattr("role", "eq", "%s") | map(attribute="content") | first }}'
QUERY, DOCUMENT = PICK % "query", PICK % "document"


def apply(template: str) -> Any:
    """What transformers' `apply_chat_template(messages, tokenize=False)` does with *template*."""

    def render(messages: list[dict[str, Any]]) -> str:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=template)
        return str(texts[0])

    return render


def test_a_flat_template_is_the_text_around_the_texts() -> None:
    """Prefix, middle and suffix are what stands around the two contents."""
    template = apply(f"<q>{QUERY}</q>\n<d>{DOCUMENT}</d> yes or no?")
    assert render_template(template, None) == TextTemplate("<q>", "</q>\n<d>", "</d> yes or no?")


def test_a_template_of_structured_contents_is_found_too() -> None:
    """Contents that are lists of parts are tried where plain ones do not arrive."""
    template = apply(
        "{% for message in messages %}[{{ message.role }}] "
        "{% for part in message.content %}{{ part.text }}{% endfor %};{% endfor %}"
    )
    assert render_template(template, None) == TextTemplate("[query] ", ";[document] ", ";")


def test_the_prompt_is_the_system_message() -> None:
    """It is written where the template writes system messages; an empty one is no message."""
    system = PICK % "system" + ";"
    template = apply(
        "{% if messages[0].role == 'system' %}" + system + "{% endif %}" + f"{QUERY}|{DOCUMENT}"
    )
    assert render_template(template, "Judge").prefix == "Judge;"
    assert render_template(template, None).prefix == ""
    assert render_template(template, "").prefix == ""


def test_a_trimming_template_strips() -> None:
    """`| trim` on both contents becomes `strip`."""
    trimmed = [part.replace(" }}", " | trim }}") for part in (QUERY, DOCUMENT)]
    template = render_template(apply(f"q: {trimmed[0]}\nd: {trimmed[1]};"), None)
    assert template == TextTemplate("q: ", "\nd: ", ";", strip=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",  # drops both
        f"{QUERY} {DOCUMENT} {QUERY}",  # the query twice
        f"{QUERY} {DOCUMENT.replace(' }}', ' | upper }}')}",  # changes the document
        f"{QUERY} {DOCUMENT.replace(' }}', ' | trim }}')}",  # strips one of the two
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_is_no_text_around_the_texts_is_refused(template: str) -> None:
    """It must write the query and the document, once and as they are."""
    with pytest.raises(ModelError, match="the chat template must write the query and the document"):
        render_template(apply(template), None)


def test_a_template_that_writes_any_prompt_has_a_slot_for_it() -> None:
    """Rendered with one prompt or none, it takes another, and is what rendering that gives."""
    system = f"{{% if messages[0].role == 'system' %}}{PICK % 'system'}{{% endif %}}"
    chat = apply(f"<s>{system};{QUERY}|{DOCUMENT}")
    for prompt in ("Judge", None):
        template = render_template(chat, prompt)
        assert template.slot == ("<s>", ";")
        for other in ("Find it", " with\nblanks ", "Judge"):
            assert template.with_prompt(other) == render_template(chat, other)
        assert template.with_prompt("") is None  # not what it writes without a prompt, perhaps


@pytest.mark.parametrize(
    "system",
    [
        "",  # takes none
        (PICK % "system").replace(" }}", " | trim }}"),
        (PICK % "system").replace(" }}", " | upper }}"),
        (PICK % "system") * 2,
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    ],
)
def test_a_template_that_writes_prompts_otherwise_has_none(system: str) -> None:
    """Not at all, changed, or twice: then no other prompt can be written in by hand."""
    template = render_template(apply(f"{system};{QUERY}|{DOCUMENT}"), None)
    assert template.slot is None
    assert template.with_prompt("Find it") is None
    assert template.text("q", "d").endswith(";q|d")


def test_a_prompt_may_move_nothing_but_the_prefix() -> None:
    """A template that says something else at the end where there is a prompt has no slot."""
    ending = "{% if messages[0].role == 'system' %}!{% endif %}"
    template = render_template(apply(f"{PICK % 'system'};{QUERY}|{DOCUMENT}{ending}"), None)
    assert template.slot is None


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(60) }}",
        "{% set it = namespace(x='a') %}" + "{% set it.x = it.x ~ it.x %}" * 40,
        "{% set x = 'a' %}" + "{% set x = x + x %}" * 40,
        "{% for i in range(99999) %}" + "a" * 999 + "{% endfor %}",
    ],
    ids=["loops", "macros", "namespace", "doubling", "output"],
)
def test_a_template_that_does_not_end_is_refused(template: str) -> None:
    """Jinja's sandbox bounds neither steps nor letters; the thread's own trace function is back."""
    before = sys.gettrace()
    with pytest.raises(ModelError, match=r"does not (end within|keep to) .* template="):
        render_template(apply(template + QUERY + DOCUMENT), None)
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{{ messages.append(1) }}"],
)
def test_a_template_reaches_nothing(attack: str) -> None:
    """It renders in a sandbox: attributes and the caller's lists are out of its reach."""
    with pytest.raises(ModelError, match="chat template must write"):
        render_template(apply(attack + QUERY + DOCUMENT), None)
