"""Recorded device work: CUDA graphs of decoding steps and of settling, one for each size of the batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from dps.start import RECORDINGS, stage


class Recorder:
    """Runs a piece of device work by replaying its recording; records it when it is first asked for.

    The work must do the same to memory whenever it runs, and must not look at values from the host.
    """

    def __init__(self, pause: Callable[[], Callable[[], None]]) -> None:
        """Prepare; ``pause`` makes the work harmless for its rehearsals and returns what ends that."""
        self._pause = pause
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Replay the work of that name, recording it first if need be."""
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._record(work)
        graph.replay()

    @stage(RECORDINGS)
    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        resume = self._pause()
        try:
            # Rehearsals compile kernels and let libraries allocate, which a recording must not contain.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                work()
        finally:
            resume()
        return graph
