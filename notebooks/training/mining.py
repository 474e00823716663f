"""Retrieval on the device: BM25 over word pieces, and nearest neighbours by cosine."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from ragged import Ragged
from torch import Tensor

WORDS = 30522
Ranked = NDArray[np.int32]
"""(queries, depth) positions of documents, best first, -1 where there are no more."""


class Lexical:
    """BM25 (k1 0.9, b 0.4) over word pieces: for mining it ranks as BM25 over words does."""

    def __init__(self, documents: Ragged, stop: Sequence[int]) -> None:
        """Index all documents; the pieces of `stop` count nothing."""
        device = documents.flat.device
        lengths = torch.from_numpy(documents.lengths).to(device)
        owner = torch.arange(len(documents), device=device).repeat_interleave(lengths)
        keys, counts = (owner * WORDS + documents.flat).unique(return_counts=True)
        rows, self.columns = keys // WORDS, (keys % WORDS).int()
        frequency = torch.bincount(self.columns, minlength=WORDS).float()
        idf = torch.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
        idf[torch.tensor(list(stop), device=device)] = 0
        length = lengths.float()[rows] / lengths.float().mean()
        self.values = idf[self.columns] * counts * 1.9 / (counts + 0.9 * (0.6 + 0.4 * length))
        self.bounds = torch.zeros(len(documents) + 1, dtype=torch.int64, device=device)
        self.bounds[1:] = torch.bincount(rows, minlength=len(documents)).cumsum(0)

    def search(
        self, queries: Ragged, rows: NDArray[np.int64], span: tuple[int, int], depth: int
    ) -> Ranked:
        """The `depth` best documents of a span for the named queries."""
        begin, end = span
        low, high = int(self.bounds[begin]), int(self.bounds[end])
        table = torch.sparse_csr_tensor(
            (self.bounds[begin : end + 1] - low).int(),
            self.columns[low:high],
            self.values[low:high],
            (end - begin, WORDS),
        )
        found = []
        for part in np.array_split(rows, max(1, len(rows) // 128)):
            asked = torch.zeros(WORDS, len(part), device=table.device)
            lengths = queries.lengths[part]
            column = np.repeat(np.arange(len(part)), lengths)
            step = np.arange(len(column)) - np.repeat(lengths.cumsum() - lengths, lengths)
            at = torch.from_numpy(np.repeat(queries.starts[part], lengths) + step).to(table.device)
            asked[queries.flat[at].long(), torch.from_numpy(column).to(table.device)] = 1
            found.append(_best((table @ asked).T.contiguous(), begin, depth))
        return np.concatenate(found)


def nearest(
    queries: Tensor, documents: Tensor, rows: NDArray[np.int64], span: tuple[int, int], depth: int
) -> Ranked:
    """The `depth` documents of a span with the largest inner product, for the named queries."""
    begin, end = span
    table = documents[begin:end]
    if table.device.type == "cpu":
        table = table.float()
    found = []
    for part in np.array_split(rows, max(1, len(rows) // 256)):
        asked = queries[torch.from_numpy(part).to(queries.device)].to(table.dtype)
        found.append(_best(asked @ table.T, begin, depth))
    return np.concatenate(found)


def _best(scores: Tensor, begin: int, depth: int) -> Ranked:
    values, at = scores.topk(min(depth, scores.shape[1]), dim=1)
    found = torch.where(values > 0, at + begin, -1).int().cpu().numpy()
    if found.shape[1] < depth:
        found = np.pad(found, ((0, 0), (0, depth - found.shape[1])), constant_values=-1)
    return found
