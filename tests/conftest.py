"""The same examples in every run, so that a run on another machine tells the same."""

from hypothesis import settings

import dps.start

dps.start._SILENT_S = 1e9  # on a busy machine a start may take so long that it is said, among what a test compares

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")
