"""rerank_adapters.tokenization."""
