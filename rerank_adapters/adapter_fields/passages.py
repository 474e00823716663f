"""Where in a document an answer stands, as adapters tell it."""

from __future__ import annotations

from ..errors import InputError

Span = tuple[int, int]


def check_passages(span_key: object, return_passages: object, text_fn: object) -> None:
    """Raise InputError unless spans can be told: of a text of `text_fn` they say nothing."""
    if span_key is not None and (not isinstance(span_key, str) or not span_key):
        raise InputError(
            f"span_key must be a non-empty str, or None to write no span: got {span_key!r:.80}"
        )
    if not isinstance(return_passages, bool):
        raise InputError(f"return_passages must be True or False: got {return_passages!r:.80}")
    asked = "span_key" if span_key is not None else "return_passages" if return_passages else ""
    if asked and text_fn is not None:
        raise InputError(
            f"{asked} tells where in a document's content its passage stands, and text_fn builds "
            "another text: give either"
        )


def in_body(span: Span | None, start: int, length: int) -> Span | None:
    """*span* of a text in which a body of *length* characters begins at *start*, in the body.

    None where there is no span, or where it holds nothing of the body.
    """
    if span is None:
        return None
    first, last = (min(max(0, bound - start), length) for bound in span)
    return (first, last) if first < last else None
