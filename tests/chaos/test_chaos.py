"""Jobs train through a storm of faults, and every promise holds.

COALFACE_CHAOS_SEED, _STEPS and _FAULTS set what is drawn and how long it goes on; _RESULTS names a
folder for the report.
"""

import os
from pathlib import Path

import pytest

from tests.chaos.report import write_report
from tests.chaos.storm import Storm

SETTINGS = {
    "COALFACE_CHAOS_SEED": "1",
    "COALFACE_CHAOS_STEPS": "6000",
    "COALFACE_CHAOS_FAULTS": "60",
}
LIMIT_S = 3000.0


@pytest.mark.chaos
@pytest.mark.timeout(LIMIT_S + 300)
def test_every_promise_holds_through_a_storm_of_faults(tmp_path: Path) -> None:
    given = {name: os.environ.get(name, default) for name, default in SETTINGS.items()}
    seed, steps, faults = (int(value) for value in given.values())
    results = os.environ.get("COALFACE_CHAOS_RESULTS")
    if results:  # now, rather than after the storm
        Path(results).mkdir(parents=True, exist_ok=True)
    storm = Storm(tmp_path, seed)
    outcome = storm.run(min_steps=steps, min_faults=faults, limit_s=LIMIT_S)
    if results:
        command = " ".join(f"{name}={value}" for name, value in given.items())
        write_report(outcome, Path(results), f"{command} make test-chaos")
    assert outcome.violations == []
    assert sum(outcome.steps.values()) >= steps
    assert outcome.faults.total() >= faults
    assert outcome.num_over_stale > 0, "nothing was to be marked, so marks were not judged"
