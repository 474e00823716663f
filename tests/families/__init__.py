"""rerank_adapters.families."""
