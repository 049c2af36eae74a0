"""Small tokenizers of the kinds that language models have, each able to write :data:`TEXTS`."""

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
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )


def byte_level(add_prefix_space=False, **options):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
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
    metaspaces = decoders.Metaspace("▁", prepend_scheme=scheme)
    backend.decoder = (
        decoders.Sequence([decoders.ByteFallback(), metaspaces, decoders.Fuse()]) if byte_fallback else metaspaces
    )
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
    "byte level, prefix space": lambda **o: byte_level(add_prefix_space=True, **o),
    "llama 2": llama2,
    "metaspace always": lambda **o: metaspace("always", **o),
    "metaspace first": lambda **o: metaspace("first", **o),
    "metaspace never": lambda **o: metaspace("never", **o),
    "metaspace without bytes": lambda **o: metaspace("always", byte_fallback=False, **o),
    "gemma": gemma,
    "unigram": unigram,
    "unigram never": lambda **o: unigram("never", **o),
}
"""Tokenizers that lose nothing of a text."""
ALL = EXACT | {"word piece": word_piece, "word piece, cleanup": lambda **o: word_piece(cleanup=True, **o)}


def framed(tokenizer, single):
    """Return a tokenizer that puts tokens around a text: ``<s> $A </s>``."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[
            (word, tokenizer.convert_tokens_to_ids(word)) for word in dict.fromkeys(single.split()) if word != "$A"
        ],
    )
    return tokenizer
