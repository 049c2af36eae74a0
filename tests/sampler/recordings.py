"""A GPU's windows on a CPU: recordings that are closures, with the pace and the lengths that a GPU has."""

from dps.sampler.engine import Engine
from dps.sampler.pace import Pacer


class Recordings:
    """What ``graphs.Recorder`` does, by closures: rehearsed while paused, kept by name, replayed as first bound."""

    def __init__(self, pause):
        self._pause = pause
        self.kept = {}

    def run(self, key, work):
        if key not in self.kept:
            resume = self._pause()
            work()
            work()
            resume()
            self.kept[key] = work
        self.kept[key]()

    @property
    def lengths(self):
        """The lengths that steps were recorded for."""
        return {key[2] for key in self.kept if key[0] == "step"}


class RecordedEngine(Engine):
    """An engine whose windows are a GPU's, on any device."""

    def _allocate(self, rows):
        super()._allocate(rows)
        self._recorder = Recordings(self._rows.pause)
        self._pacer = Pacer(self.config.block_size, self.config.num_mh_steps)

    @property
    def recorded_lengths(self):
        return self._recorder.lengths
