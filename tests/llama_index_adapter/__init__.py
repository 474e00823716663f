"""Named so that no folder of tests shadows the `llama_index` package."""
