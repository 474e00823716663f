"""Token ids of everything a run reads, and the share of long pairs."""

from mining import Group, Union
from model import MAX_LENGTH, base_folder, load_tokenizer, truncate


class Texts:
    """Token ids of the union's documents and of the groups' queries, without special tokens."""

    def __init__(self, union: Union, groups: list[Group]) -> None:
        """Tokenise once."""
        tokenizer = load_tokenizer(base_folder())
        encoded = tokenizer.encode_batch_fast(union.documents, add_special_tokens=False)
        self.documents = [e.ids[:MAX_LENGTH] for e in encoded]
        queries = sorted({group.query for group in groups})
        encoded = tokenizer.encode_batch_fast(queries, add_special_tokens=False)
        self.queries = {q: e.ids[:MAX_LENGTH] for q, e in zip(queries, encoded, strict=True)}

    def tokens(self, group: Group) -> int:
        """About what the group costs."""
        query = len(self.queries[group.query]) + 3
        return sum(query + len(self.documents[p]) for p in group.candidates)

    def pairs(self, group: Group, limit: int) -> list[tuple[list[int], list[int]]]:
        """The group's (query ids, document ids), cut to `limit` tokens."""
        query = self.queries[group.query]
        return [truncate(query, self.documents[p], limit) for p in group.candidates]


def with_long_pairs(groups: list[Group], texts: Texts, share: float) -> list[Group]:
    """The groups in order, thinned so that pairs above 256 tokens are a `share` of all.

    A group without a long pair is left out whenever the groups kept so far hold too few.
    """
    kept, long, total = [], 0, 0
    for group in groups:
        lengths = [len(q) + len(d) + 3 for q, d in texts.pairs(group, MAX_LENGTH)]
        own = sum(length > 256 for length in lengths)
        if own or long >= share * (total + len(lengths)):
            kept.append(group)
            long, total = long + own, total + len(lengths)
    return kept
