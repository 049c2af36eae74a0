"""Settings of the sampler that cannot be meant are refused, and the others mean what they say."""

from dataclasses import replace

import pytest

from dps.errors import InputError
from dps.sampler.settings import SamplerConfig

CONFIG = SamplerConfig(alpha=2.0, block_size=6, max_new_tokens=18, num_mh_steps=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(alpha=0.5), "alpha must be at least 1"),
        (dict(alpha=float("nan")), "alpha must be at least 1"),
        (dict(block_size=5), "block_size must divide max_new_tokens"),
        (dict(block_size=0), "block_size and max_new_tokens must be at least 1"),
        (dict(num_mh_steps=-1), "must not be negative"),
        (dict(proposal_temperature=0.0), "proposal_temperature must be above 0"),
        (dict(num_final_steps=3), "num_final_steps is read only by schedule: final-horizon"),
        (dict(num_tries=0), "num_tries and anneal_blocks must be at least 1"),
        (dict(anneal_blocks=0), "num_tries and anneal_blocks must be at least 1"),
        (dict(anneal_blocks=4), "anneal_blocks must be at most 3, the stages"),
        (dict(accept_rule="max_swap", num_tries=2), "leave num_tries and anneal_blocks at 1"),
        (dict(accept_rule="max_swap", anneal_blocks=2), "leave num_tries and anneal_blocks at 1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(cut_law="entropy", num_tries=3, anneal_blocks=3),
        dict(accept_rule="max_swap", cut_law="entropy"),
        dict(schedule="final-horizon", num_final_steps=0),
        dict(block_size=18, anneal_blocks=1),
    ],
    ids=str,
)
def test_settings_that_can_be_meant_pass(changes):
    config = replace(CONFIG, **changes)
    assert config.check() is config


def test_the_most_steps_of_a_chain():
    assert CONFIG.max_mh_steps == 12  # three stages of four
    final = replace(CONFIG, schedule="final-horizon", num_final_steps=7)
    assert final.max_mh_steps >= 2 * 4 + 7  # the last stage is the final one, or a jump to it follows the second


def test_plain_sampling_ignores_what_makes_a_kernel():
    plain = replace(CONFIG, cut_law="entropy", num_tries=2, anneal_blocks=2).plain(0.7).check()
    assert (plain.temperature, plain.num_mh_steps, plain.max_mh_steps) == (0.7, 0, 0)
    assert (plain.cut_law, plain.num_tries, plain.anneal_blocks) == ("uniform", 1, 1)
