"""Generation backends: transformers, vLLM in this process, or a server."""
