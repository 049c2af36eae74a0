"""One file for each stopping rule that needs no training."""
