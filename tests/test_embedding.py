"""Question embeddings: the model's own, alone as together, and one sentence where there is no model."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentence_transformers

from dps import embedding
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.model_config import embedded_path

FOLDER = embedded_path("embedder")


def test_embeddings_are_the_models_alone_as_together():
    embedder = QuestionEmbedder(str(FOLDER))
    questions = ["how many", "red apples ?", "how", "something else"]
    together = embedder.embed(questions)
    assert (together.dtype, together.shape) == (np.float32, (4, embedder.size))
    expected = sentence_transformers.SentenceTransformer(str(FOLDER), device="cpu").encode(questions)
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(together, np.concatenate([embedder.embed([q]) for q in questions]))
    assert embedder.embed([]).shape == (0, embedder.size)


def test_an_embedder_is_quiet_and_lazy(capfd):
    code = f"from dps import embedding; embedding.QuestionEmbedder({str(FOLDER)!r}).identity"
    code = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(QuestionEmbedder(str(FOLDER)).embed(["how many"] * 100)) == 100
    assert capfd.readouterr() == ("", "")


def test_what_is_no_model_is_one_sentence(tmp_path, monkeypatch):
    for name in ("no/such/folder", "/no/such", "", "a b"):
        with pytest.raises(InputError, match="folder or hub id"):
            QuestionEmbedder(name)
    with pytest.raises(InputError, match=r"has no modules\.json"):
        QuestionEmbedder(str(tmp_path))
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "no.such.Module"}]')
    with pytest.raises(InputError, match=r"^Could not load the question embedder [^\n]*$"):
        QuestionEmbedder(str(tmp_path)).embed(["how many"])

    def refuse(name, *, device, local_files_only, trust_remote_code):
        assert (name, device, local_files_only, trust_remote_code) == ("nobody/nothing", "cpu", False, False)
        raise OSError("nobody/nothing is not a local folder\nand more lines")

    monkeypatch.setattr(embedding, "only_cached", lambda *arguments: False)
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", refuse)
    with pytest.raises(InputError, match=r"embedder nobody/nothing: nobody/nothing is not a local folder$"):
        QuestionEmbedder("nobody/nothing").embed(["how many"])


def test_identity_is_of_the_content(tmp_path):
    same, other = (tmp_path / place / FOLDER.name for place in ("a", "b"))
    for copy in (same, other):
        shutil.copytree(FOLDER, copy)
    tokenizer = next(other.rglob("tokenizer.json"))
    tokenizer.write_text(tokenizer.read_text() + " ")
    identities = [QuestionEmbedder(str(folder)).identity for folder in (FOLDER, same, other)]
    assert identities[0] == identities[1] != identities[2]
    assert QuestionEmbedder("owner/name").identity == "owner/name"
