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
