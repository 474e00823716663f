"""Mutations of the library that its tests must notice: one line made wrong, who has to fail.

`tests/mutants.py` runs them. The first 24 are those of a review, in today's code: nine of them went
unnoticed then. `old` stands once in its file, so that a change of the code shows here at once.

Left out, because no test of results can tell them from the original:
- `Line.leave` without its early return: to advance an empty line does nothing.
- `RequestQueue.take` without `_cut_alone`: what it cuts is what a plan of one request gives, which
  `test_a_request_alone_is_cut_as_if_it_had_been_planned` holds; it saves planning the rest.
- `RequestQueue.take` that keeps its plan when nothing waits: the plan has no batch left, so that
  the next request gets a new one; until then it would keep memory.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """*old* → *new* in `rerank_adapters/`*file*; one of *tests* has to fail."""

    file: str
    old: str
    new: str
    tests: str

    @property
    def nodes(self) -> list[str]:
        """The tests' ids, which are written "file.py::name name"."""
        file, _, names = self.tests.partition("::")
        return [f"tests/{file}::{name}" for name in names.split()]


M = Mutation

REVIEWED = (
    M(  # the smallest goes first
        "engine/plan.py",
        "min(others, key=lambda index: window[index].tokens)",
        "max(others, key=lambda index: window[index].tokens)",
        "engine/test_queue.py::test_the_smallest_of_several_goes_first",
    ),
    M(  # who is passed over when a batch serves several
        "engine/queue.py",
        "for older in plan.window[:youngest]:",
        "for older in plan.window[: plan.window.index(pieces[0].waiting)]:",
        "engine/test_queue.py::test_all_older_than_the_youngest_served_were_passed_over",
    ),
    M(  # the batch after one that memory was too small for
        "engine/worker.py",
        "batch.padded_tokens() / 2)",
        "batch.padded_tokens() / 1)",
        "engine/test_faults.py::test_02_oom_split_halves_what_is_cut_next",
    ),
    M(  # law 1 at load
        "parity/comparison.py",
        '{"float32": 1e-4, "float16"',
        '{"float32": 1e-2, "float16"',
        "parity/test_comparison.py::test_the_tolerances_are_the_librarys_promise",
    ),
    M(  # a push between two downloads
        "loading/hub.py",
        "revision=self.revision or self.asked_revision",
        "revision=self.asked_revision",
        "loading/test_hub.py::test_the_second_download_is_of_the_commit_of_the_first",
    ),
    M(  # a fingerprint that reads the beginning only
        "loading/fingerprint.py",
        'hashlib.file_digest(stream, "sha256").hexdigest()',
        "hashlib.sha256(stream.read(65536)).hexdigest()",
        "loading/test_fingerprint.py::test_one_flipped_byte_of_the_weights_changes_it",
    ),
    M(  # the migration page promises a quarter
        "llama_index/metadata.py",
        "METADATA_SHARE = 0.25",
        "METADATA_SHARE = 0.5",
        "llama_index_adapter/test_nodes.py::test_where_metadata_goes_depends_on_its_tokens",
    ),
    M(  # how far a cut of a text reaches
        "tokenization/reader.py",
        "SETTLED_WORDS = 8",
        "SETTLED_WORDS = 1",
        "tokenization/test_reader.py::test_a_cut_that_splits_the_word_before_it_is_not_settled",
    ),
    M(  # a text exactly as long as the limit
        "tokenization/template.py",
        "full = totals >= limit",
        "full = totals > limit",
        "tokenization/test_template.py::"
        "test_at_the_limit_the_ending_is_written_over_a_token_that_joined_it",
    ),
    M(  # padding: the larger of two limits
        "engine/batching.py",
        "> max(max_padding * padded, free_padding)",
        "> min(max_padding * padded, free_padding)",
        "engine/test_batching.py::test_padding_cheaper_than_a_forward_is_free",
    ),
    M(  # half of the tokens are the oldest request's
        "engine/queue.py",
        "self._ahead + 2 * own -",
        "self._ahead + 3 * own -",
        "engine/test_queue.py::test_a_large_request_has_half_of_the_tokens",
    ),
    M(  # a turn costs a forward
        "engine/queue.py",
        "ahead += rule.free_padding if its_turn else -rule.free_padding",
        "ahead += 0",
        "engine/test_queue.py::test_a_forward_counts_in_addition_to_its_tokens",
    ),
    M(  # a quarter of the window is one request's
        "engine/queue.py",
        "min(room, self.window_tokens // 4)",
        "min(room, self.window_tokens)",
        "engine/test_queue.py::test_a_huge_request_does_not_hide_those_behind_it",
    ),
    M(  # a budget that memory cut grows again
        "engine/worker.py",
        "self.budget * 1.1",
        "self.budget * 1.0",
        "engine/test_faults.py::test_02_oom_split_budget_grows_back",
    ),
    M(  # the deadline counts from before tokenising
        "scorers/queued.py",
        "ticket = admission.reserve(len(pairs), call.deadline)",
        "ticket = admission.reserve(len(pairs), None)",
        "test_seams.py::test_the_deadline_is_set_once_and_holds_through_wrappers",
    ),
    M(  # in line by when they asked
        "engine/line.py",
        "insort(self._waiting, request, key=_number)",
        "self._waiting.append(request)",
        "engine/test_line.py::test_17_overload_lets_callers_in_by_when_they_asked",
    ),
    M(  # a threshold is a Python float
        "ranking/ranking.py",
        "bound = float(score_threshold)\n        found",
        "bound = float(np.float32(score_threshold))\n        found",
        "ranking/test_ranking.py::test_the_bound_is_compared_with_the_floats_handed_out",
    ),
    M(  # the odd token of equal texts
        "tokenization/truncation.py",
        "queries > documents\n",
        "queries >= documents\n",
        "tokenization/test_pairs.py::test_longest_first_is_the_rule_of_tokenizers",
    ),
    M(  # two labels at the ends of float32
        "families/activations.py",
        "np.clip(lead, bound.min, bound.max)",
        "np.asarray(lead)",
        "families/test_activations.py::test_a_lead_beyond_float32_is_its_largest_number",
    ),
    M(  # the last lease frees the network
        "sharing.py",
        "self.views -= 1\n            if self.views:",
        "self.views -= 1\n            if self.views >= 0:",
        "test_sharing.py::test_the_last_lease_frees_the_network_at_once_when_nothing_may_idle",
    ),
    M(  # threads of a forward beside others
        "backends/onnx.py",
        "max(1, cpus - workers + 1)",
        "max(1, cpus)",
        "backends/test_onnx.py::test_workers_and_threads_share_the_cpus",
    ),
    M(  # what is not scored stands below what is
        "ranking/ranking.py",
        "lowest = min([0.0, *",
        "lowest = min([1.0, *",
        "langchain_adapter/test_compressor.py::"
        "test_documents_without_text_carry_no_more_than_nothing",
    ),
    M(  # the histogram's bounds
        "engine/stats.py",
        "1 << (pairs - 1).bit_length()",
        "1 << pairs.bit_length()",
        "engine/test_scheduling.py::test_stats_count_what_happened",
    ),
    M(  # long pairs run few at a time
        "engine/dispatch.py",
        "MOST_RUNNING = 8",
        "MOST_RUNNING = 800",
        "engine/test_scheduling.py::test_pairs_beyond_the_budget_run_few_at_a_time",
    ),
)

FURTHER = (
    # -- batches and their order
    M(
        "engine/batching.py",
        "max_batch_tokens // max(1, descending[start])",
        "(max_batch_tokens + descending[start]) // max(1, descending[start])",
        "engine/test_batching.py::test_the_budget_counts_padded_tokens",
    ),
    M(
        "engine/batching.py",
        'order = np.argsort(-lengths, kind="stable")',
        "order = np.lexsort((-np.arange(len(lengths)), -lengths))",
        "engine/test_batching.py::test_longest_first_and_ties_in_the_order_given",
    ),
    M(
        "engine/batching.py",
        "bisect_left(range(size), True, key=too_padded) - 1)",
        "bisect_left(range(size), True, key=too_padded))",
        "engine/test_batching.py::test_a_batch_keeps_the_budget_and_the_padding_share",
    ),
    M(
        "engine/plan.py",
        "if window[index].skipped >= max_skipped:",
        "if window[index].skipped > max_skipped:",
        "engine/test_queue.py::test_all_older_than_the_youngest_served_were_passed_over",
    ),
    M(
        "engine/plan.py",
        "        self.tokens -= tokens\n        self.skipped = 0\n",
        "        self.tokens -= tokens\n",
        "engine/test_queue.py::test_a_request_served_starts_again_to_be_passed_over",
    ),
    M(
        "engine/queue.py",
        "budget = min(budget, waiting.max_batch_tokens)",
        "budget = max(budget, 1)",
        "engine/test_queue.py::test_a_cap_of_the_only_request_is_kept",
    ),
    M(
        "engine/queue.py",
        "least = min(budget, *(waiting.max_batch_tokens for waiting in window))",
        "least = budget",
        "engine/test_queue.py::test_a_cap_holds_for_every_batch_of_its_window",
    ),
    M(
        "engine/queue.py",
        "(now.budget, now.rule) == (budget, rule)",
        "now.budget == budget",
        "engine/test_queue.py::test_each_rule_is_used_for_the_batches_it_is_asked_for",
    ),
    M(
        "engine/queue.py",
        "waiting.tokens, last=True)\n                self._planned = None",
        "waiting.tokens, last=True)",
        "engine/test_queue.py::test_what_was_dropped_is_in_no_later_batch",
    ),
    # -- the line and its limits
    M(
        "engine/line.py",
        "waiting + pairs <= limits.pairs",
        "waiting + pairs < limits.pairs",
        "engine/test_line.py::test_a_limit_is_what_the_queue_may_hold",
    ),
    M(
        "engine/line.py",
        "self.tokens + tokens <= limits.tokens",
        "self.tokens <= limits.tokens",
        "engine/test_line.py::test_a_limit_is_what_the_queue_may_hold",
    ),
    M(
        "engine/line.py",
        "reserved = 0 if self._limits.block else self._reserved_pairs",
        "reserved = 0",
        "engine/test_line.py::test_17_overload_counts_what_is_not_tokenised_yet",
    ),
    M(
        "engine/admission.py",
        "self._line.release(ticket)  # and",
        "pass  # and",
        "engine/test_line.py::test_17_overload_counts_each_pair_once",
    ),
    M(
        "engine/admission.py",
        "not (ticket.owner is self or ticket.done())",
        "not ticket.owner",
        "engine/test_admission.py::test_a_ticket_of_another_admission_is_refused",
    ),
    # -- workers
    M(
        "engine/worker.py",
        "min(float(self.rule.max_tokens), self.budget * 1.1)",
        "self.budget * 1.1",
        "engine/test_faults.py::test_02_oom_split_budget_grows_back",
    ),
    M(
        "engine/worker.py",
        "FORWARDS_UNTIL_GROWTH = 8\n",
        "FORWARDS_UNTIL_GROWTH = 7\n",
        "engine/test_faults.py::test_02_oom_split_budget_grows_back",
    ),
    M(
        "engine/worker.py",
        "finite = np.isfinite(rows)",
        "finite = ~np.isnan(rows)",
        "engine/test_faults.py::test_04_nan_alone_names_the_pair",
    ),
    M(
        "engine/worker.py",
        "len(indices) - _within(bad, span)",
        "len(indices)",
        "engine/test_progress.py::test_rows_tried_again_are_reported_once_and_failures_never",
    ),
    M(
        "engine/requests.py",
        "row = request.order[indices[0]]",
        "row = indices[0]",
        "engine/test_faults.py::test_a_forward_error_names_the_pair_and_keeps_the_cause",
    ),
    M(  # the device begins with the first chunk
        "scorers/queued.py",
        "if pairs < 2 * FIRST_CHUNK:",
        "if pairs < 200 * FIRST_CHUNK:",
        "scorers/test_chunks.py::test_the_first_forward_begins_before_the_last_text_is_tokenised",
    ),
    M(  # chunks of texts that are about as long
        "scorers/queued.py",
        'order = np.argsort(-lengths, kind="stable")',
        'order = np.argsort(lengths, kind="stable")',
        "scorers/test_chunks.py::test_the_first_chunk_holds_the_longest_texts",
    ),
    M(  # more of a caller stands where its first pairs stood
        "engine/queue.py",
        "self._waiting = dict(sorted(self._waiting.items(), key=_arrived))",
        "pass",
        "engine/test_queue.py::test_parts_keep_the_turn_of_their_first",
    ),
    M(  # admitted whole
        "engine/line.py",
        "self._coming[ticket] = (pairs, most_tokens)",
        "self._coming[ticket] = (pairs, 0)",
        "engine/test_admission.py::"
        "test_a_request_in_parts_counts_by_the_most_it_may_have_until_it_is_here",
    ),
    M(
        "engine/dispatch.py",
        "if idle < 2:",
        "if idle < 99:",
        "engine/test_scheduling.py::test_idle_workers_share_what_one_could_take",
    ),
    M(
        "engine/engine.py",
        "on_close, self._on_close = self._on_close, None\n            self._workers",
        "on_close = self._on_close\n            self._workers",
        "engine/test_closing.py::test_22_close_frees_the_forwards_once",
    ),
    # -- sharing
    M(
        "sharing.py",
        "kept[IDLE_MODELS:]",
        "kept[IDLE_MODELS + 1 :]",
        "test_sharing.py::test_two_idle_models_are_kept_and_no_third",
    ),
    M(
        "sharing.py",
        "        _check_access(found)\n",
        "",
        "test_sharing.py::test_a_refused_token_gets_nothing_though_the_model_is_loaded",
    ),
    M(
        "sharing.py",
        "replace(found.config, max_batch_tokens=None)",
        "replace(found.config)",
        "test_sharing.py::test_one_leases_small_batches_are_not_anothers",
    ),
    # -- scores, keys, rankings
    M(
        "families/activations.py",
        "astype(np.float64) - np.logaddexp.reduce(",
        "astype(np.float64) + np.logaddexp.reduce(",
        "families/test_activations.py::test_scores_are_those_worked_out_by_hand",
    ),
    M(
        "families/activations.py",
        "np.exp(-np.abs(logits, dtype=np.float32))",
        "np.exp(-np.asarray(logits, dtype=np.float32))",
        "families/test_activations.py::test_scores_are_those_worked_out_by_hand",
    ),
    M(
        "families/activations.py",
        'sigmoid if activation == "softmax" else FUNCTIONS',
        'np.abs if activation == "softmax" else FUNCTIONS',
        "families/test_activations.py::test_scores_are_those_worked_out_by_hand",
    ),
    M(
        "ranking/ranking.py",
        "if scores[at] >= bound]",
        "if scores[at] > bound]",
        "ranking/test_ranking.py::test_top_applies_the_bound_and_then_the_cut",
    ),
    M(
        "ranking/ranking.py",
        "order = whole = np.argsort(-keys, kind=",
        "order = whole = np.argsort(-scores, kind=",
        "ranking/test_ranking.py::test_ranked_sorts_by_keys_and_shows_scores",
    ),
    M(
        "parity/comparison.py",
        "max(1.0, float(np.abs(oracle).max()))",
        "1.0",
        "parity/test_comparison.py::test_the_tolerance_grows_with_the_largest_logit",
    ),
    # -- adapters
    M(
        "langchain/request.py",
        "metadata = dict(document.metadata)",
        "metadata = document.metadata",
        "langchain_adapter/test_compressor.py::test_inputs_are_left_as_they_were",
    ),
    M(
        "langchain/request.py",
        "id(document) if key is None else key",
        "key",
        "langchain_adapter/test_compressor.py::test_dedupe",
    ),
    M(
        "llama_index/request.py",
        "text.strip()  # RetrieverTool",
        "text  # RetrieverTool",
        "llama_index_adapter/test_nodes.py::test_queries_are_stripped",
    ),
    M(
        "answers.py",
        "if document.index in seen or not 0 <=",
        "if not 0 <=",
        "test_adapter_rankers.py::test_an_answer_that_is_none_is_a_backend_error",
    ),
)

MUTATIONS = REVIEWED + FURTHER
