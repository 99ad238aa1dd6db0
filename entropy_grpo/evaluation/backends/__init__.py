"""What writes the answers: transformers, vLLM in this process, or a server."""
