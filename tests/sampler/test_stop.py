import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dps.errors import InputError
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.stop import StopTable, before_stop, open_stops, stop_tokens, token_bytes
from dps.testing import ToyModel, assert_follows, reference_law, responses, sample_chains, total_variation, toy_of
from dps.text import AddedText
from tests.sampler.chains import sampled_chains as sample
from tests.sampler.models import tiny_model, with_tokenizer
from tests.sampler.test_exactness import FINAL, PAPER
from tests.tokenizer_kinds import ALL, EXACT, TEXTS
from tests.tokenizer_kinds import byte_level as byte_level_kind

pieces = st.lists(st.text("abé\n", max_size=4).map(str.encode), min_size=1, max_size=6)
strings = st.lists(st.text("abé\n", min_size=1, max_size=5), min_size=1, max_size=4)


@given(strings, pieces, st.lists(st.integers(0, 5), max_size=12))
@settings(max_examples=100, deadline=None)
def test_the_table_says_whether_the_text_contains_a_stop_string(stops, pieces, tokens):
    table = StopTable(stops, pieces, torch.device("cpu"))
    assert table.following.dtype == torch.int16
    state, text = 0, b""
    for token in tokens:
        token %= len(pieces)
        state, text = int(table.following[state, token]), text + pieces[token]
        assert (state == table.matched) == any(stop.encode() in text for stop in stops)


@pytest.mark.parametrize(
    "changes",
    [PAPER, dict(FINAL, cut_law="entropy")],
    ids=["paper", "final-horizon-entropy"],
)
def test_responses_that_a_string_ends_follow_the_enumerated_law(changes):
    config = SamplerConfig(**changes)
    language_model = with_tokenizer(tiny_model(vocabulary=3, eos=0, seed=23, sharpness=1.0))
    prompt, count = (1, 2, 1), 8_000
    without = toy_of(language_model, prompt, config.max_new_tokens)
    toy = replace(without, stops=((1, 2), (2, 2, 1)))
    expected = reference_law(toy, config)
    chains = sample(language_model, config, prompt, range(count), 1024, ["ab", "bba"])
    states = responses(toy, config.max_new_tokens)
    assert len(chains) == count
    assert_follows([tuple(chain.tokens.tolist()) for chain in chains.values()], expected, states)
    for chain in chains.values():
        stopped = toy.ends(tuple(chain.tokens.tolist())) and chain.tokens[-1] != 0
        assert chain.ending == ("eos" if chain.tokens[-1] == 0 else "stop" if stopped else "length")
    assert {chain.ending for chain in chains.values()} == {"eos", "stop", "length"}
    # The test has power: cutting the strings off afterwards is another law.
    cut = Counter()
    for response, mass in zip(responses(without, config.max_new_tokens), reference_law(without, config), strict=True):
        cut[
            next(response[:n] for n in range(1, len(response) + 1) if toy.ends(response[:n]) or n == len(response))
        ] += mass
    assert total_variation(np.array([cut[s] for s in states]), expected) > 0.02


def test_forced_lengths_do_not_stop():
    language_model = with_tokenizer(tiny_model(vocabulary=3, eos=0, seed=5, sharpness=1.0))
    config = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=12, num_mh_steps=2)
    engine = Engine(language_model, config, rows=8, prompt_room=1, stop_strings=["a", "b"])
    chains = sample_chains(engine, [ChainRequest(0, (1,), 7, forced_length=9)])
    assert len(chains[0].tokens) == 9
    assert chains[0].ending == "eos"


@pytest.fixture(scope="module")
def by_stage():
    """A model, settings, and chains of these settings cut at each stage's end."""
    base = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=20, num_mh_steps=3)
    model = tiny_model(sharpness=3.0, seed=4)
    stages = [sample(model, replace(base, max_new_tokens=4 * s), (3, 5, 7), range(80)) for s in range(1, 6)]
    return model, base, stages


@pytest.mark.parametrize(
    ("metric", "threshold"), [("entropy", 1.1), ("perplexity", 2.1), ("self_confidence", 0.6), ("entropy", None)]
)
def test_an_early_stop_ends_at_the_first_stage_past_the_threshold(by_stage, metric, threshold):
    """A chain up to stage s is the same for every T_max, so shorter runs say where the rule must end the longest."""
    language_model, base, by_stage = by_stage
    rule = replace(base, early_stop=metric, early_stop_threshold=threshold, early_stop_min_tokens=7).check()
    found = sample(language_model, rule, (3, 5, 7), range(80))
    limit = rule.early_stop_threshold_in_force

    def past(chain):
        value = {
            "entropy": -chain.entropies.mean(),
            "perplexity": -np.exp(-chain.base_logprobs.mean()),
            "self_confidence": chain.top_probabilities.mean(),
        }[metric]
        return len(chain.tokens) >= 7 and value >= (limit if metric == "self_confidence" else -limit)

    endings = Counter()
    for i in range(80):
        stages = [chains[i] for chains in by_stage]
        stop = next((s for s in stages[:-1] if s.ending == "eos" or past(s)), stages[-1])
        expected = "early" if stop.ending == "length" and stop is not stages[-1] else stop.ending
        assert found[i].tokens.tolist() == stop.tokens.tolist()
        assert found[i].ending == expected
        endings[expected] += 1
    assert endings["early"] >= 5
    assert endings["eos"] >= 5


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(InputError, match=r"Stop strings need a fast tokenizer, but object is none: set benchmark.stop"):
        token_bytes(object(), 5)


def matches(tokenizer, stops, tokens):
    """Return after how many of these tokens the table says that a response ends; None if it does not."""
    table = open_stops(stops, tokenizer, len(tokenizer) + 2, torch.device("cpu"))
    state = 0
    for count, token in enumerate(tokens, start=1):
        state = int(table.following[state, token])
        if state == table.matched:
            return count
    return None


def with_added(tokenizer):
    tokenizer.add_tokens(["<|im_end|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.add_tokens(["END", "naïve", " stop here"])
    return tokenizer


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("stop", ["<|im_end|>", "<|eot_id|>", "</s>", "END", " stop here", "naïve"])
def test_a_stop_string_that_is_a_token_of_its_own_ends_a_response(kind, stop):
    tokenizer = with_added(EXACT[kind]())
    token = tokenizer.convert_tokens_to_ids(stop)
    response = [*tokenizer("Problem: x", add_special_tokens=False)["input_ids"], token, 5, token]
    assert matches(tokenizer, [stop], response) == len(response) - 2
    assert matches(tokenizer, ["zzz", stop], [token, token]) == 1
    assert matches(tokenizer, ["zzz"], response) is None


@pytest.mark.parametrize(
    ("stop", "inside"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        ("\n<|im_end|>", "<|im_end|>"),
        (" </s>", "</s>"),
        ("<|im_end|><|eot_id|>", "<|eot_id|>"),
        ("Problem:</s>", "</s>"),
    ],
)
def test_a_stop_string_of_a_special_token_and_other_text_is_refused(stop, inside):
    with pytest.raises(InputError, match=re.escape(f"{stop!r} is the special token ")) as caught:
        matches(with_added(byte_level_kind()), ["\n\n", stop], [])
    assert "give '<|" in str(caught.value) or inside in str(caught.value)


def test_special_tokens_of_one_sign_do_not_refuse_texts():
    tokenizer = byte_level_kind()
    tokenizer.add_tokens(["\n", "?", "  "], special_tokens=True)
    assert stop_tokens(["\n\nProblem:", "what?", "  x"], tokenizer) == []
    assert stop_tokens(["?"], tokenizer) == [tokenizer.convert_tokens_to_ids("?")]


def test_a_part_of_a_special_token_and_text_like_one_are_ordinary_text():
    tokenizer = with_added(byte_level_kind())
    response = tokenizer("x <|im_ends", add_special_tokens=False)["input_ids"]
    assert matches(tokenizer, ["<|im_ends"], response) == len(response)
    assert matches(tokenizer, ["im_e"], [*response, tokenizer.convert_tokens_to_ids("<|im_end|>")]) is not None
    assert matches(tokenizer, ["im_e"], [tokenizer.convert_tokens_to_ids("<|im_end|>")]) is None


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stop", ["\n    return", " return", "\n\nProblem:", "3", " x", "?", "groß", "🙂", "END x"])
def test_stop_strings_see_the_text_that_is_decoded(kind, stop):
    """The response ends with the first token after which its decoded text contains the stop string."""
    tokenizer = with_added(ALL[kind]())
    text = AddedText(tokenizer)
    for prompt in ["f(x):", "a"]:
        for response in [*TEXTS, " return x", "return x", "xEND x  x", "\n\nProblem:"]:
            before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            tokens = tokenizer(prompt + response, add_special_tokens=False)["input_ids"][len(before) :]
            expected = next((n for n in range(1, len(tokens) + 1) if stop in text(tokens[:n])), None)
            assert matches(tokenizer, [stop], tokens) == expected
            if expected is not None:
                assert before_stop(text(tokens[:expected]), [stop]) == text(tokens).partition(stop)[0]


def test_a_sampled_response_ends_at_a_special_stop_token_by_the_law_of_an_eos():
    """The stop token in the place of an EOS gives the same chains."""
    config = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=12, num_mh_steps=3)
    plain = with_tokenizer(tiny_model(vocabulary=4, eos=0, seed=6, sharpness=0.5), ["[E]", "a", "b", "<|im_end|>"])
    plain.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    more = replace(plain, more_eos=("<|im_end|>",))
    stopped, ended = (
        sample(plain, config, (1, 2), range(80), 64, ["<|im_end|>"]),
        sample(more, config, (1, 2), range(80)),
    )
    assert {c.tokens[-1] for c in stopped.values() if c.ending == "stop"} == {3}
    assert sum(c.ending == "stop" for c in stopped.values()) > 5
    for i in range(80):
        assert stopped[i].tokens.tolist() == ended[i].tokens.tolist()
        assert stopped[i].ending.replace("stop", "eos") == ended[i].ending
        assert 3 not in stopped[i].tokens[:-1]


def test_text_before_the_first_stop_string():
    assert before_stop("4.\n\nProblem: x\nQ:", ["Q:", "\n\nProblem:"]) == "4."
    assert before_stop("4.", ["Q:"]) == "4."
    assert before_stop("4.", []) == "4."


def test_the_enumeration_knows_stop_strings():
    toy = ToyModel({}, 3, 0, 3, stops=((1, 2),))
    found = responses(toy, 3)
    assert len(set(found)) == len(found)
    assert (1, 2) in found
    assert (2, 1, 2) in found
    assert not any(r[:2] == (1, 2) and len(r) > 2 for r in found)
