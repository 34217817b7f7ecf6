"""Disturbs runs in every way there is, for as long as you like: `python -m tests.faults --minutes 30 --seed 1`.

At the end it says what was tried, and what did not survive, with the words that do it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests import launcher
from tests.faults.trials import KINDS, Trial, can_run, run_trial


def main() -> int:
    """1 if something did not survive."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each has the one after the last")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds of faults, by default all")
    parser.add_argument("--exec", action="store_true", help="start processes as users do, not forked by a launcher")
    options = parser.parse_args()
    if not options.exec and sys.platform == "linux":
        launcher.Popen.before = dict(os.environ)
        subprocess.Popen = launcher.Popen  # type: ignore[misc]
    kinds = [kind for kind in options.only or KINDS if can_run(kind)]
    until = time.monotonic() + 60 * options.minutes
    trials: list[Trial] = []
    while time.monotonic() < until:
        kind, seed = kinds[len(trials) % len(kinds)], options.seed + len(trials) // len(kinds)
        with tempfile.TemporaryDirectory(prefix="prefork-faults-") as folder:
            trials.append(trial := run_trial(kind, seed, Path(folder)))
        said = f"{kind}, seed {seed}: {'; '.join(trial.done)}"
        print(f"{'WRONG' if trial.wrong else 'ok   '} {said}", *trial.wrong, sep="\n        ", flush=True)
    tried, counted = Counter(t.kind for t in trials), Counter[str]()
    for trial in trials:
        counted[trial.kind] += trial.count
    print()
    for kind in kinds:
        survived = sum(not trial.wrong for trial in trials if trial.kind == kind)
        print(f"{kind:12} {tried[kind]:5} runs, {counted[kind]:6} faults, {survived:5} survived")
    wrong = [trial for trial in trials if trial.wrong]
    for trial in wrong:
        print(f"again: python -m tests.faults --minutes 0.01 --only {trial.kind!r} --seed {trial.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
