"""The page of a replay, or of several side by side: ``replay.json`` in, HTML, PNG and SVG out. No store is read.

``marks`` says how each policy is drawn, ``views`` brings the numbers into tables, ``figure`` and ``charts`` draw,
``page`` puts the page together, ``write`` is what ``dps replay`` and ``dps report`` call.
"""

from dps.analysis.report.replays.write import is_replay, write_replay_page, write_replays

__all__ = ["is_replay", "write_replay_page", "write_replays"]
