"""Which selection configurations are accepted."""

import pytest
from pydantic import ValidationError

from miner.core import SelectionConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_start": 5, "window_stop": 5}, "leave 0 identities"),
        ({"window_start": 9, "window_stop": 5}, "leave -4 identities"),
        ({"window_stop": 2}, "takes 3 from them"),
        ({"window_stop": 300}, "raise num_candidates"),
        ({"strategy": "hardest", "num_candidates": 2}, "cannot give the 3 negatives"),
        ({"identities_per_group": 1}, "greater than or equal to 2"),
        ({"samples_per_identity": 0}, "greater than or equal to 1"),
        ({"max_uses_per_sample": 0}, "greater than or equal to 1"),
        ({"relative_margin": 1.5}, "less than or equal to 1"),
        ({"margin": 0.0}, "greater than 0"),
        ({"positive_percentile": 101}, "less than or equal to 100"),
        ({"groups_per_round": 0}, "greater than or equal to 1"),
        ({"strategy": "hard"}, "Input should be 'hardest'"),
        ({"random_fraction": 1.1}, "less than or equal to 1"),
        ({"composition": "ring"}, "Input should be 'star'"),
        ({"composition_width": 1}, "greater than or equal to 2"),
        ({"distance_cutoff": 0.0}, "greater than 0"),
        ({"simans_sharpness": 0.0}, "greater than 0"),
        ({"guard_positive": "median"}, "Input should be 'chosen'"),
        ({"strategy": "simans", "num_candidates": 2}, "cannot give the 3 negatives"),
        ({"min_uses_per_sample": -1}, "greater than or equal to 0"),
        ({"min_uses_per_sample": 3, "max_uses_per_sample": 2}, "min_uses_per_sample=3 is above"),
        ({"quarantine": {"policy": "maybe"}}, "Input should be 'off'"),
        ({"quarantine": {"max_false_share": 0.0}}, "greater than 0"),
        ({"curriculum": {"steps": 0}}, "greater than or equal to 1"),
        ({"curriculum": {"violating_fraction": 1.0}}, "less than 1"),
        ({"windowstart": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        SelectionConfig(**changes)


def test_plain_triplets_are_the_smallest_group():
    config = SelectionConfig(identities_per_group=2, samples_per_identity=1)
    assert config.negatives_per_group == 1


def test_the_window_is_not_looked_at_by_other_strategies():
    assert SelectionConfig(strategy="hardest", num_candidates=5).window_stop == 20
