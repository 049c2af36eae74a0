"""Question embeddings: what DPS-MLP-HQ sees of a question besides its trajectories.

Any sentence-transformers model will do; nothing is imported or loaded before the first use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dps.errors import InputError
from dps.hub import is_hub_id, offline_if_silent, only_cached, quiet_hub
from dps.start import EMBEDDER, stage
from dps.threads import num_threads, torch_threads

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class QuestionEmbedder:
    """A sentence-transformers model, loaded at its first use."""

    def __init__(self, path_or_id: str, device: str = "cpu") -> None:
        """Raise an InputError for what is neither a folder with a model nor a possible hub id; nothing is loaded."""
        self.path_or_id = path_or_id
        self.device = device
        folder = Path(path_or_id).expanduser()
        self._folder = folder if path_or_id and folder.is_dir() else None
        if self._folder is not None:
            if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
                raise InputError(
                    f"Expected a sentence-transformers model as embedder, but the folder {path_or_id} has no "
                    "modules.json: give the folder that save_pretrained wrote."
                )
        elif not is_hub_id(path_or_id):
            raise InputError(
                f"Expected the embedder as folder or hub id of a sentence-transformers model, got {path_or_id!r}, "
                "which is neither: check the name."
            )

    @cached_property
    def identity(self) -> str:
        """What tells this embedder from another: the name and, of a folder, a digest of its files. Loads nothing."""
        if self._folder is None:
            return self.path_or_id
        digest = hashlib.blake2b(digest_size=8)
        for path in sorted(p for p in self._folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin", ".txt")):
            digest.update(path.relative_to(self._folder).as_posix().encode() + path.read_bytes())
        return f"{self._folder.resolve().name}@{digest.hexdigest()}"

    def check_there(self) -> None:
        """Raise an InputError if the model is on the hub, and that does not answer or does not have it."""
        if self._folder is None:
            only_cached(self.path_or_id, "the question embedder")

    @property
    def size(self) -> int:
        """Size E of an embedding. Loads the model."""
        return int(self._model.get_embedding_dimension())

    @stage(EMBEDDER)
    def embed(self, questions: Sequence[str]) -> np.ndarray:
        """Embed N questions as the model does, without normalizing: shape (N, E), float32.

        An InputError if the model cannot be loaded.
        """
        if not questions:
            return np.empty((0, self.size), dtype=np.float32)
        with torch_threads(num_threads(sum(weight.numel() for weight in self._model.parameters()))):
            embeddings = self._model.encode(list(questions), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(embeddings, dtype=np.float32)

    @cached_property
    def _model(self) -> SentenceTransformer:
        self.check_there()
        import transformers
        from sentence_transformers import SentenceTransformer

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        local = self._folder is not None
        try:
            with quiet_hub(), nullcontext() if local else offline_if_silent():
                return SentenceTransformer(
                    str(self._folder or self.path_or_id),
                    device=self.device,
                    local_files_only=local,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
            raise InputError(f"Could not load the question embedder {self.path_or_id}: {reason}") from error
