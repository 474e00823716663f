"""rerank_adapters.score_cache."""
