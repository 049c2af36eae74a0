"""The HDF5 store of a run: immutable segments of complete questions beside a manifest."""

from feature_store.errors import StoreError
from feature_store.records import ENDINGS, Decision, Manifest, Question, StepTrace, Trajectory
from feature_store.store import Store, StoreWriter

__all__ = [
    "ENDINGS",
    "Decision",
    "Manifest",
    "Question",
    "StepTrace",
    "Store",
    "StoreError",
    "StoreWriter",
    "Trajectory",
]
