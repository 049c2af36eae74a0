"""A run: rows of the engine shared among questions, workers, their ledger, the clock and the plan."""
