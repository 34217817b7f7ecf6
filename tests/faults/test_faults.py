"""A few runs of each kind of fault, always the same ones; `python -m tests.faults` goes on for as long as you like.

Schedules are those of test_pool_state and test_pool_calls.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.trials import KINDS, MUTANTS, can_run, run_trial


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mutants", "schedules")])
def test_a_run_survives(kind: str, seed: int, tmp_path: Path) -> None:
    if not can_run(kind):
        pytest.skip("only root can fill a disk of its own")
    trial = run_trial(kind, seed, tmp_path)
    assert not trial.wrong, (trial.done, trial.wrong)
    assert trial.done


@pytest.mark.parametrize("seed", range(2))
def test_mutants_cost_only_themselves(seed: int, tmp_path: Path) -> None:
    trial = run_trial("mutants", seed, tmp_path)
    assert not trial.wrong, trial.wrong
    assert trial.count >= MUTANTS
