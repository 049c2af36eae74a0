"""From stored trajectories to estimates, comparisons, findings and a page."""
