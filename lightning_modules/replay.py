"""Where a dynamic policy stops and which threshold follows; see :mod:`dps.analysis.replay.decide`."""

from dps.analysis.replay.decide import NEVER_STOP, Replay, choose_threshold, effective_margin, replay, stops, sweep

__all__ = ["NEVER_STOP", "Replay", "choose_threshold", "effective_margin", "replay", "stops", "sweep"]
