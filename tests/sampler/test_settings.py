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
        (dict(proposal_temperature=0.0), "proposal_temperature must be at least 1e-30 and finite, .* got 0: raise it"),
        (dict(alpha=1e31), "1/alpha where it is not set, got 1e-31: raise it"),
        (dict(num_final_steps=3), "num_final_steps is read only by schedule: final-horizon"),
        (dict(alpha=float("inf")), "alpha must be at least 1 and finite"),
        (dict(proposal_temperature=float("inf")), "proposal_temperature must be at least 1e-30 and finite, .* got inf"),
        (dict(block_size=1 << 20, max_new_tokens=1 << 20), "max_new_tokens must be below 1048576"),
        (dict(schedule="papr"), "schedule must be paper or final-horizon, got 'papr'"),
        (dict(cut_law="entropi"), "cut_law must be uniform or entropy, got 'entropi'"),
        (dict(accept_rule="max"), "accept_rule must be metropolis or max_swap, got 'max'"),
        (dict(early_stop="luck"), "early_stop must be none, entropy, perplexity or self_confidence, got 'luck'"),
        (dict(early_stop_threshold=0.5), "early_stop_threshold is read only with early_stop"),
        (dict(early_stop="entropy", early_stop_min_tokens=0), "early_stop_min_tokens must be at least 1, got 0"),
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
        dict(accept_rule="max_swap", cut_law="entropy"),
        dict(schedule="final-horizon", num_final_steps=0),
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


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        (dict(alpha=3.0, proposal_temperature=1.0, num_mh_steps=7), True),
        (dict(schedule="final-horizon", num_final_steps=3), True),
        (dict(reject_early=False), True),
        (dict(block_size=9), False),
        (dict(max_new_tokens=24), False),
        (dict(cut_law="entropy"), False),
        (dict(accept_rule="max_swap"), False),
        (dict(early_stop="entropy"), False),
    ],
    ids=str,
)
def test_settings_share_rows_where_they_differ_by_row_only(changes, shares):
    other = replace(CONFIG, **changes).check()
    assert CONFIG.shares_rows(other) == other.shares_rows(CONFIG) == CONFIG.plain(0.6).shares_rows(other) == shares
    assert other.shares_rows(other)


def test_plain_sampling_takes_no_steps_and_shares_rows_with_any_kernel():
    kernel = replace(CONFIG, cut_law="entropy", schedule="final-horizon", num_final_steps=3)
    plain = kernel.plain(0.7).check()
    assert (plain.temperature, plain.num_mh_steps, plain.max_mh_steps) == (0.7, 0, 0)
    assert plain.shares_rows(kernel)
