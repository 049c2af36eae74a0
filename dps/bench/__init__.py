"""Measuring speed: whole runs and decoding steps against vLLM, the published loop and plain batched sampling."""
