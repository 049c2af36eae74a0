"""What `dps metrics` makes of finished runs: tables of trajectories, samples to success, its predictor, and pass@k."""
