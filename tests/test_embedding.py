"""Question embeddings: the model's own, alone as together, and one sentence where there is no model."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from dps import embedding
from dps.embedding import QuestionEmbedder
from dps.errors import InputError

WORDS = ["[UNK]", "how", "many", "apples", "red", "?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved sentence-transformers model: the average of known word vectors."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.arange(len(WORDS) * 4, dtype=np.float32).reshape(len(WORDS), 4)
    path = tmp_path_factory.mktemp("embedder") / "static"
    static = StaticEmbedding(tokenizer, embedding_weights=weights)
    sentence_transformers.SentenceTransformer(modules=[static]).save_pretrained(str(path))
    return path


def test_embeddings_are_the_models_alone_as_together(folder):
    embedder = QuestionEmbedder(str(folder))
    questions = ["how many", "red apples ?", "how", "something else"]
    together = embedder.embed(questions)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[:2], [[6, 7, 8, 9], [16, 17, 18, 19]])
    np.testing.assert_array_equal(together, np.concatenate([embedder.embed([q]) for q in questions]))
    assert embedder.size == 4
    assert embedder.embed([]).shape == (0, 4)


def test_an_embedder_is_quiet_and_lazy(folder):
    code = (
        "import sys\nfrom dps.embedding import QuestionEmbedder\n"
        f"embedder = QuestionEmbedder({str(folder)!r})\n"
        "assert 'torch' not in sys.modules and 'sentence_transformers' not in sys.modules\n"
        "assert embedder.embed(['how many'] * 100).shape == (100, 4)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


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


def test_identity_is_of_the_content(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    assert QuestionEmbedder(str(copy)).identity == QuestionEmbedder(str(folder)).identity
    tokenizer = next(copy.rglob("tokenizer.json"))
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert QuestionEmbedder(str(copy)).identity != QuestionEmbedder(str(folder)).identity
    assert QuestionEmbedder("owner/name").identity == "owner/name"
