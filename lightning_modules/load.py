"""Loads a trained controller for live runs: from a checkpoint file or a run folder, without Lightning.

Training writes the checkpoint (``controllers.base``); ``dps evaluate``, ``dps sample`` and the Python interface load it
here and ask it at every checkpoint of a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dps.decide.features import FEATURE_SETS, CheckpointFeatures, stack_blocks
from dps.decide.files import controller_file
from dps.decide.table import EMBEDDING, HIDDEN
from dps.decide.vectors import Blocks
from dps.errors import InputError
from lightning_modules.batches import to_tensor
from lightning_modules.estimators import ESTIMATORS, ESTIMATORS_BEFORE, Estimator
from lightning_modules.hostile import BadController, build_estimator, check_description

FORMAT = 3
"""Version of the description in a checkpoint; a change that old readers cannot follow raises it."""

_READABLE = (2, FORMAT)
"""Versions that this reader follows: in 2 an MLP was one network, without attention and spread."""

DESCRIPTION = "controller"
"""Key of the description in a checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Controller:
    """A trained controller, ready to be asked."""

    path: Path
    """The checkpoint."""
    description: Mapping[str, Any]
    """What the checkpoint says of itself: plain values."""
    estimator: Estimator
    """The part that predicts, in float64."""

    @property
    def name(self) -> str:
        """``gbdt``, ``mlp-h`` or ``mlp-hq``."""
        return self.description["name"]

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the features that it looks at, of :data:`dps.decide.features.PARTS`."""
        return self.estimator.parts

    @property
    def threshold(self) -> float:
        """More trajectories are added while ``1 - p_enough`` is above this; ``solvable``: given up if not above it."""
        return float(self.estimator.threshold)

    @property
    def calibration(self) -> dict[str, float]:
        """The calibrated clock of the harvest it was trained on, for ``question_time_sec``."""
        return dict(self.description["data"]["calibration"])

    @property
    def pooling(self) -> str:
        """How hidden states are pooled, one of :data:`dps.decide.features.POOLINGS`."""
        return self.description["data"]["pooling"]

    @property
    def spread(self) -> bool:
        """Whether it sees the standard deviation over trajectories, too."""
        return self.description["data"].get("spread", False)

    @property
    def label(self) -> str:
        """What ``p_enough`` is the probability of: ``no_gain``, ``correct`` or ``solvable``."""
        return self.description["data"]["label"]

    @property
    def ks(self) -> tuple[int, ...]:
        """Checkpoints that it was trained on, then the largest k of its harvest."""
        return tuple(self.description["data"]["ks"])

    @property
    def block(self) -> int | None:
        """The block after which it is asked while trajectories run; None where all have ended."""
        return self.description["data"].get("block")

    @property
    def block_size(self) -> int | None:
        """Tokens of a block of its harvest; None where an older training did not note it."""
        return self.description["data"].get("block_size")

    @property
    def feature_set(self) -> str:
        """``published`` or ``extended``: which scalars it sees."""
        return self.description["feature_set"]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The scalar features in the order of the arrays."""
        return tuple(self.description["feature_names"])

    @property
    def probability_calibration(self) -> str:
        """How its probabilities were calibrated: ``none``, ``temperature`` or ``isotonic``."""
        return self.estimator.calibrator.method

    @property
    def hidden_size(self) -> int:
        """D of the harvest."""
        return self.description["hidden_size"]

    @property
    def embedding_size(self) -> int:
        """E of the harvest."""
        return self.description["embedding_size"]

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the language model that was harvested."""
        return str(self.description["data"]["model"].get("fingerprint", ""))

    @property
    def feature_layer(self) -> int | None:
        """Layer of the hidden states; None where the harvest does not say."""
        return self.description["data"]["model"].get("feature_layer")

    def predict_enough(self, features: Sequence[CheckpointFeatures]) -> np.ndarray:
        """Return the probability that the current k is enough, one per question: shape (N,), float64.

        Args:
            features: Raw features of N questions.

        Raises:
            InputError: If scalars, hidden states or embeddings have another size than those it was trained on.
        """
        if not features:
            return np.zeros(0)
        scalars = np.stack([f.scalars_of(self.feature_set) for f in features]).astype(np.float64)
        if scalars.shape[1] != len(self.feature_names):
            raise self._refusal(f"{len(self.feature_names)} scalar features", f"these have {scalars.shape[1]}")
        self.check_sizes(len(features[0].hidden), len(features[0].embedding))
        embedding = np.stack([f.embedding for f in features])
        arrays = (scalars, self._hidden_of(features), embedding)
        return self.estimator.predict_enough(*(to_tensor(each, torch.float64) for each in arrays)).numpy()

    def _hidden_of(self, features: Sequence[CheckpointFeatures]) -> np.ndarray | Blocks:
        """Return the hidden states of N questions in the form that it was trained on."""
        if self.pooling == "attention" and HIDDEN in self.estimator.parts:
            each = [trajectory for f in features for trajectory in f.blocks]
            ks = np.array([len(f.blocks) for f in features])
            places = np.arange(ks.max())
            members = np.where(places < ks[:, None], (np.cumsum(ks) - ks)[:, None] + places, -1)
            return Blocks(stack_blocks(each), members)
        if self.spread:
            return np.stack([np.concatenate([f.hidden, f.spread]) for f in features])
        return np.stack([f.hidden for f in features])

    def check_sizes(self, hidden_size: int, embedding_size: int) -> None:
        """Refuse features of other sizes than those it was trained on, if it looks at them.

        Args:
            hidden_size: D.
            embedding_size: E.

        Raises:
            InputError: If a size differs.
        """
        parts = {
            "hidden states": (HIDDEN, self.hidden_size, hidden_size),
            "question embeddings": (EMBEDDING, self.embedding_size, embedding_size),
        }
        for what, (part, expected, came) in parts.items():
            if part in self.estimator.parts and expected != came:
                raise self._refusal(f"{what} of size {expected}", f"these have {came}")

    def check_model(self, identity: Mapping[str, Any], embedding_size: int | None = None) -> None:
        """Refuse a language model or question embedder whose features it was not trained on.

        Args:
            identity: ``fingerprint``, ``name``, ``hidden_size``, ``feature_layer`` and ``embedder``, as in a manifest.
            embedding_size: E of the embedder; None where it is not loaded yet.

        Raises:
            InputError: If they differ in something that this controller looks at.
        """
        trained = self.description["data"]["model"]
        if HIDDEN in self.estimator.parts:
            if self.hidden_size != identity["hidden_size"]:
                raise self._refusal(
                    f"hidden states of size {self.hidden_size}", f"these have {identity['hidden_size']}"
                )
            if trained.get("feature_layer") != identity.get("feature_layer"):
                layers = trained.get("feature_layer"), identity.get("feature_layer")
                raise self._refusal(f"hidden states of layer {layers[0]}", f"these are of layer {layers[1]}")
        if trained.get("fingerprint") != identity.get("fingerprint"):
            models = (f"{m.get('name')} (fingerprint {m.get('fingerprint')})" for m in (trained, identity))
            raise self._refusal(f"the model {next(models)}", f"this is {next(models)}")
        if EMBEDDING in self.estimator.parts:
            if embedding_size is not None and self.embedding_size != embedding_size:
                raise self._refusal(
                    f"question embeddings of size {self.embedding_size}", f"these have {embedding_size}"
                )
            if trained.get("embedder") != identity.get("embedder"):
                embedders = trained.get("embedder"), identity.get("embedder")
                raise self._refusal(f"question embeddings by {embedders[0]}", f"these are by {embedders[1]}")

    def _refusal(self, trained: str, came: str) -> InputError:
        return InputError(
            f"The controller {self.path} was trained on {trained}, but {came}: give the model, layer and embedder of "
            "its harvest, or train a controller on a harvest of this one."
        )


def checkpoint_path(path: str | Path) -> Path:
    """Return the checkpoint file that a path means: itself, or the one in a run folder or a controller folder.

    Raises:
        InputError: If there is no such file.
    """
    path = Path(path)
    found = controller_file(path)
    if not found.is_file():
        raise InputError(
            f"Expected a trained controller at {path}, but there is no {found}: train one with "
            "dps fit --config configs/mlp_hq.yaml, or give a checkpoint or its run folder."
        )
    return found


def load_controller(path: str | Path) -> Controller:
    """Load a trained controller.

    Args:
        path: A ``.ckpt`` file, a run folder that holds ``checkpoints/best.ckpt``, or a folder of ``dps ship``.

    Raises:
        InputError: If there is none, it is no controller's checkpoint, or it was trained on other features.
    """
    found = checkpoint_path(path)
    checkpoint = read_checkpoint(found)
    description = checkpoint[DESCRIPTION]
    known = ESTIMATORS if description["format"] == FORMAT else ESTIMATORS_BEFORE
    prefix = "estimator."
    state = checkpoint.get("state_dict")
    state = {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}
    own = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    try:
        check_description(description)
        estimator = build_estimator(known[description["name"]], description, own)
    except (BadController, RuntimeError, MemoryError, OverflowError) as error:
        raise InputError(
            f"Expected a controller's checkpoint, but {found} is damaged or was made by another program: {error}. Get "
            "it again, or train one with dps fit."
        ) from error
    # In float64 a question's probability does not depend, in any digit that matters, on who is asked about with it.
    return Controller(found, description, estimator.double().eval())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a controller's checkpoint.

    Returns:
        Lightning's dictionary, with the description under :data:`DESCRIPTION`.

    Raises:
        InputError: If the file is no controller's checkpoint, is of another version, or names other features.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is none can end the unpickler in any way
        raise InputError(
            f"Expected a controller's checkpoint, but {path} cannot be read as one ({type(error).__name__}): "
            "train one with dps fit."
        ) from error
    description = checkpoint.get(DESCRIPTION) if isinstance(checkpoint, dict) else None
    name = description.get("name") if isinstance(description, dict) else None
    if not isinstance(description, dict) or not isinstance(name, str) or name not in ESTIMATORS:
        raise InputError(f"Expected a controller's checkpoint, but {path} is some other file of PyTorch's.")
    version = description.get("format")
    if version not in _READABLE:
        raise InputError(
            f"Expected a controller's checkpoint of format {FORMAT}, but {path} has format {version}: "
            "train it again with this version."
        )
    feature_set, names = str(description.get("feature_set")), description.get("feature_names")
    names = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    computed = FEATURE_SETS.get(feature_set, ())
    if not names or names != computed:
        raise InputError(
            f"The controller {path} was trained on the features {', '.join(names) or 'none'} (set "
            f"{feature_set}), but this version computes {', '.join(computed) or 'none such'}: train "
            "it again on a harvest of this version."
        )
    return checkpoint
