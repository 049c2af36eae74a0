"""The exact power sampler: its mathematics in small pure functions, and the engine that runs them over rows."""
