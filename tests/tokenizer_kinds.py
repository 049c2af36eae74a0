"""Small tokenizers of the kinds that language models have, each able to write :data:`TEXTS`."""

from functools import partial

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "def f(x):\n    return x\n\n    # done\n",
    "Problem: 3 + 4 = 7 , isn 't it ?\n\nProblem: wie groß ist das? 東京 🙂 naïve",
    "  two leading spaces and a trailing one ",
)
LETTERS = sorted(set("".join(TEXTS)))
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrapped(backend, **options):
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def byte_level(add_prefix_space=False, **options):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 2, trainer)
    return wrapped(backend, **options)


def _sentencepiece_model(byte_fallback=True):
    """Words with their space, runs of spaces, single letters, and bytes for what is none of these."""
    words = ["▁▁", "▁▁▁▁", "▁return", "re", "ret", "▁re", "return", "▁Pro", "▁x", "Pro", "lem", ":"]
    names = [*SPECIAL, *(BYTES if byte_fallback else []), "▁", *(c for c in LETTERS if c not in " 東京🙂"), *words]
    if not byte_fallback:
        names += list("東京🙂")
    names = list(dict.fromkeys(names))
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("r", "e"), ("▁", "x"), ("▁", "re")]
    return models.BPE(vocab=vocabulary, merges=merges, byte_fallback=byte_fallback, unk_token="<unk>", fuse_unk=True)


def llama2(**options):
    """Llama 2's: a normalizer writes the space, a decoder strips it."""
    backend = Tokenizer(_sentencepiece_model())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, **options)


def metaspace(scheme, byte_fallback=True, **options):
    backend = Tokenizer(_sentencepiece_model(byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace("▁", prepend_scheme=scheme)
    if byte_fallback:
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder, decoders.Fuse()])
    return wrapped(backend, **options)


def gemma(**options):
    """Gemma's: spaces are replaced, nothing is prepended or stripped."""
    backend = Tokenizer(_sentencepiece_model())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(backend, **options)


def unigram(scheme="always", **options):
    """T5's."""
    names = [*SPECIAL, "▁", *(c for c in LETTERS if c != " "), "▁return", "▁Problem:", "▁▁", "▁x"]
    backend = Tokenizer(models.Unigram([(name, -float(i % 7)) for i, name in enumerate(names)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace("▁", prepend_scheme=scheme)
    return wrapped(backend, **options)


def word_piece(cleanup=False, **options):
    letters = [c for c in LETTERS if not c.isspace()]
    names = [*SPECIAL, *letters, *(f"##{c}" for c in letters), "return", "Problem", "##turn", "re", "' t"]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    return wrapped(backend, **options)


EXACT = {
    "byte level": byte_level,
    "byte level, prefix space": partial(byte_level, add_prefix_space=True),
    "llama 2": llama2,
    **{f"metaspace {scheme}": partial(metaspace, scheme) for scheme in ("always", "first", "never")},
    "metaspace without bytes": partial(metaspace, "always", byte_fallback=False),
    "gemma": gemma,
    "unigram": unigram,
    "unigram never": partial(unigram, "never"),
}
"""Tokenizers that lose nothing of a text."""
ALL = EXACT | {"word piece": word_piece, "word piece, cleanup": partial(word_piece, cleanup=True)}


def framed(tokenizer, single):
    """Return a tokenizer that puts tokens around a text: ``<s> $A </s>``."""
    words = dict.fromkeys(word for word in single.split() if word != "$A")
    special = [(word, tokenizer.convert_tokens_to_ids(word)) for word in words]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer
