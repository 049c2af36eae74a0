"""Replay: any policy over stored trajectories, in seconds, with all thresholds and honest comparisons.

``samples`` reads a store into arrays and walks every order of its trajectories, ``decide`` says where a policy stops,
``policies`` runs them all, ``compare`` resamples questions, ``command`` is ``dps replay``.
"""
