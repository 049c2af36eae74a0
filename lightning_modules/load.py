"""Loads a trained controller for live runs: from a file, a folder or the hub, without Lightning.

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

from dps.decide.features import EMBEDDING, HIDDEN, PROMPT, CheckpointFeatures, feature_names, scalars_of
from dps.decide.ladder import Ladder
from dps.decide.policy_file import checkpoint_path
from dps.errors import InputError
from lightning_modules.estimators import ESTIMATORS, Estimator
from lightning_modules.hostile import BadController, build_estimator, check_description
from lightning_modules.learnt import has_learnt
from lightning_modules.shipped import read_shipped

FORMAT = 5
"""Version of the description in a checkpoint; readers refuse others."""

DESCRIPTION = "controller"
"""Key of the description in a checkpoint."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Controller:
    """A trained controller, ready to be asked."""

    path: Path
    """The checkpoint."""
    description: Mapping[str, Any]
    """What the checkpoint says of itself: plain values."""
    estimator: Estimator
    """The part that predicts, in float64."""

    def __repr__(self) -> str:
        says = f"on {self.ladder}, threshold {self.threshold:.3g}, features {self.feature_set}, label {self.label}"
        return f"Controller({self.name} in {self.path}: {says})"

    @property
    def name(self) -> str:
        """``gbdt``, ``mlp-h`` or ``mlp-hq``."""
        return self.description["name"]

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the features that it looks at, of :data:`dps.decide.features.PARTS`."""
        return self.estimator.parts | self.estimator.learnt.parts

    @property
    def prompt_layers(self) -> tuple[int, ...]:
        """The layers whose states of the prompt it looks at; none where it looks at none."""
        return tuple(self.description["data"]["model"].get("prompt_layers", ())) if PROMPT in self.parts else ()

    @property
    def threshold(self) -> float:
        """More trajectories are added while ``1 - p_enough`` is above this."""
        return float(self.estimator.threshold)

    @property
    def calibration(self) -> dict[str, float]:
        """The calibrated clock of the harvest it was trained on, for ``question_time_sec``."""
        return dict(self.description["data"]["calibration"])

    @property
    def label(self) -> str:
        """What ``p_enough`` is of, one of :data:`dps.decide.labels.LABELS`."""
        return self.description["data"]["label"]

    @property
    def ladder(self) -> Ladder:
        """The ladder that it was trained on, with a checkpoint after each rung but the last."""
        return Ladder.parse(self.description["data"]["ladder"])

    @property
    def arms(self) -> Mapping[str, Any]:
        """The settings of the ladder's arms in its harvest, by name."""
        return self.description["data"]["arms"]

    @property
    def ks(self) -> tuple[int, ...]:
        """Responses at each checkpoint, then those of the ladder's end."""
        return self.ladder.ks

    @property
    def feature_set(self) -> str:
        """Which scalars it sees, see :func:`dps.decide.features.feature_names`."""
        return self.description["feature_set"]

    @property
    def hidden_size(self) -> int:
        """D of the harvest."""
        return self.description["hidden_size"]

    @property
    def embedding_size(self) -> int:
        """E of the harvest."""
        return self.description["embedding_size"]

    def predict_enough(self, features: Sequence[CheckpointFeatures]) -> np.ndarray:
        """Return the probability that the current k is enough for the raw features of N questions: shape (N,), float64.

        Raises:
            InputError: If scalars, hidden states or embeddings have another size than those it was trained on.
        """
        if not features:
            return np.zeros(0)
        scalars = scalars_of(features, self.feature_set)
        if scalars.shape[1] != (expected := len(self.description["feature_names"])):
            raise self._refusal(f"{expected} scalar features", f"these have {scalars.shape[1]}")
        self.check_sizes(len(features[0].hidden), len(features[0].embedding), len(features[0].prompt))
        hidden, embedding = (np.stack([getattr(f, name) for f in features]) for name in (HIDDEN, EMBEDDING))
        if has_learnt(self.feature_set):
            votes, prompt = (np.stack([getattr(f, name) for f in features]) for name in ("votes", PROMPT))
            lengths = np.concatenate([f.rows.num_prompt_tokens for f in features])
            scalars = self.estimator.learnt.fill(scalars, votes, prompt, embedding, lengths)
        arrays = (scalars, hidden, embedding)
        return self.estimator.predict_enough(*(torch.from_numpy(each).double() for each in arrays)).numpy()

    def check_sizes(self, hidden_size: int, embedding_size: int, prompt_size: int | None = None) -> None:
        """Refuse features of another D, E or P than those it was trained on, if it looks at them; P may be unknown."""
        trained = self.description.get("prompt_size", 0)
        parts = {
            "hidden states": (HIDDEN, self.hidden_size, hidden_size),
            "question embeddings": (EMBEDDING, self.embedding_size, embedding_size),
            "states of the prompt": (PROMPT, trained, trained if prompt_size is None else prompt_size),
        }
        for what, (part, expected, came) in parts.items():
            if part in self.parts and expected != came:
                raise self._refusal(f"{what} of size {expected}", f"these have {came}")

    def check_model(self, identity: Mapping[str, Any], embedding_size: int | None = None) -> None:
        """Refuse a language model or question embedder whose features it was not trained on.

        Args:
            identity: ``fingerprint``, ``name``, ``hidden_size``, ``feature_layer``, ``prompt_layers`` and ``embedder``,
                as in a manifest.
            embedding_size: E of the embedder; None where it is not loaded yet.
        """
        trained = self.description["data"]["model"]
        if HIDDEN in self.parts:
            self.check_sizes(identity["hidden_size"], self.embedding_size)
            layers = trained.get("feature_layer"), identity.get("feature_layer")
            if layers[0] != layers[1]:
                raise self._refusal(f"hidden states of layer {layers[0]}", f"these are of layer {layers[1]}")
        if trained.get("fingerprint") != identity.get("fingerprint"):
            models = (f"{m.get('name')} (fingerprint {m.get('fingerprint')})" for m in (trained, identity))
            raise self._refusal(f"the model {next(models)}", f"this is {next(models)}")
        if (expected := self.prompt_layers) != (came := tuple(identity.get("prompt_layers", ())) if expected else ()):
            raise self._refusal(f"the prompt's states of layers {[*expected]}", f"features.prompt_layers are {[*came]}")
        if EMBEDDING in self.parts:
            self.check_sizes(self.hidden_size, self.embedding_size if embedding_size is None else embedding_size)
            embedders = trained.get("embedder"), identity.get("embedder")
            if embedders[0] != embedders[1]:
                raise self._refusal(f"question embeddings by {embedders[0]}", f"these are by {embedders[1]}")

    def _refusal(self, trained: str, came: str) -> InputError:
        return InputError(
            f"The controller {self.path} was trained on {trained}, but {came}: give the model, layer and embedder of "
            "its harvest, or train a controller on a harvest of this one."
        )


def load_controller(path: str | Path, *, revision: str | None = None) -> Controller:
    """Load a trained controller.

    Args:
        path: A run folder that holds ``checkpoints/best.ckpt``, a folder of ``dps ship``, the file in either, a
            ``policy.yaml`` that asks a controller, or its folder, or ``owner/name`` or ``owner/name@revision``, the
            name of a repository on the Hugging Face hub.
        revision: Commit, tag or branch of that repository; its main branch if neither says which.

    Returns:
        The controller, for ``dps.answer(controller=...)``; its ``predict_enough`` takes features of N questions.

    Raises:
        InputError: If there is none, it is no controller's checkpoint, or it was trained on other features.

    Example:
        >>> load_controller("runs/quickstart/controllers/gbdt").threshold  # doctest: +SKIP
    """
    file = checkpoint_path(path if revision is None else f"{path}@{revision}")
    checkpoint = read_checkpoint(file)
    description = checkpoint[DESCRIPTION]
    prefix = "estimator."
    state = checkpoint.get("state_dict")
    state = {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}
    own = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    try:
        check_description(description)
        estimator = build_estimator(ESTIMATORS[description["name"]], description, own)
    except (BadController, RuntimeError, MemoryError, OverflowError) as error:
        raise InputError(
            f"Expected a controller's checkpoint, but {file} is damaged or was made by another program: {error}. Get "
            "it again, or train one with dps fit."
        ) from error
    # In float64 a question's probability does not depend, in any digit that matters, on who is asked about with it.
    return Controller(file, description, estimator.double().eval())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a controller's checkpoint.

    Returns:
        Lightning's dictionary, with the description under :data:`DESCRIPTION`.

    Raises:
        InputError: If the file is no controller's checkpoint, is of another version, or names other features.
    """
    try:
        if path.suffix == ".safetensors":
            checkpoint = dict(zip((DESCRIPTION, "state_dict"), read_shipped(path), strict=True))
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is none can end a reader in any way
        raise InputError(
            f"Expected a controller's checkpoint, but {path} cannot be read as one ({type(error).__name__}): "
            "train one with dps fit."
        ) from error
    description = checkpoint.get(DESCRIPTION) if isinstance(checkpoint, dict) else None
    name = description.get("name") if isinstance(description, dict) else None
    if not isinstance(description, dict) or not isinstance(name, str) or name not in ESTIMATORS:
        raise InputError(f"Expected a controller's checkpoint, but {path} is some other file of PyTorch's.")
    version = description.get("format")
    if version != FORMAT:
        raise InputError(
            f"Expected a controller's checkpoint of format {FORMAT}, but {path} has format {version}: "
            "train it again with this version."
        )
    feature_set, names = str(description.get("feature_set")), description.get("feature_names")
    names = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    try:
        computed = feature_names(feature_set, Ladder.parse(description["data"]["ladder"]))
    except (InputError, KeyError, TypeError, ValueError):
        computed = ()
    if not names or names != computed:
        raise InputError(
            f"The controller {path} was trained on the features {', '.join(names) or 'none'} (set "
            f"{feature_set}), but this version computes {', '.join(computed) or 'none such'}: train "
            "it again on a harvest of this version."
        )
    return checkpoint
