"""Measuring speed: the engine against the published loop and plain batched sampling, in one process."""
