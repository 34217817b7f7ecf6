"""Speech whose phones' and words' times are known: python tests/data/synthesize_english.py --texts FILE --output DIR
--voice NAME [--count N] [--seed N]

awb and rms are flite's voices, kal, ked and slt festival's (Debian's flite, festival, festvox-kallpc16k,
festvox-kdlpc16k, festvox-us-slt-hts; slt needs sox, too). FILE is CoNLL-U; its sentences of 4 to 18 plain words are
spoken. Writes a recording for each, and NAME.json: for each recording its text, [phone, start, end] of its segments,
"" for silence, and of festival's voices [word, start, end]; times are in seconds. What is trained never hears kal, ked
or slt.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import wave
from collections.abc import Callable, Iterable
from pathlib import Path

# Phones that ARPAbet has not, or has under another name; "" is silence.
NAMES = {
    **dict.fromkeys(("pau", "h#", "brth", "ssil"), ("",)),
    "ax": ("AX",),
    "axr": ("ER",),
    "ix": ("IH",),
    "ux": ("UW",),
    "dx": ("T",),
    "nx": ("N",),
    "hv": ("HH",),
    "el": ("AX", "L"),
    "em": ("AX", "M"),
    "en": ("AX", "N"),
}
FLITE = {"awb": 120, "rms": 95}  # the usual pitch, Hz
FESTIVAL = {"kal": "voice_kal_diphone", "ked": "voice_ked_diphone", "slt": "voice_cmu_us_slt_arctic_hts"}
_SAY = """
(define (say text file)
  (let ((utt (eval (list 'Utterance 'Text text))))
    (utt.synth utt)
    (utt.save.wave utt (string-append file ".wav") 'riff)
    (list_times utt 'Segment '(name segment_start segment_end) (string-append file ".segments"))
    (list_times utt 'Word '(name word_start word_end) (string-append file ".words"))))
(define (list_times utt relation features file)
  (let ((out (fopen file "w")))
    (mapcar (lambda (f) (format out "%s %s %s\\n" (car f) (cadr f) (caddr f))) (utt.features utt relation features))
    (fclose out)))
"""

Interval = tuple[str, float, float]  # what, start, end: seconds


def read_texts(path: Path) -> list[str]:
    """Sentences of plain words, so that what is written is what is said."""
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        _, found, text = line.partition("# text = ")
        plain = re.fullmatch(r"[A-Za-z' ,.?!;-]+", text) and 4 <= len(text.split()) <= 18 and len(text) < 110
        odd = re.search(r"[A-Z]{2}|\b[B-HJ-Zb-hj-z]\b|\. \S|--| -|\.\.|[a-z]\.[A-Za-z]", text)
        if found and plain and not odd:
            texts.append(text.strip())
    return list(dict.fromkeys(texts))


def name_phones(segments: Iterable[Interval]) -> list[Interval]:
    named: list[Interval] = []
    for name, start, end in segments:
        phones = NAMES.get(name, (name.upper(),))
        edges = [round(start + (end - start) * place / len(phones), 4) for place in range(len(phones) + 1)]
        named += [(phone, edges[place], edges[place + 1]) for place, phone in enumerate(phones)]
    return named


def speak_with_flite(voice: str, texts: list[str], output: Path, rng: random.Random) -> dict[str, object]:
    spoken: dict[str, object] = {}
    for place, text in enumerate(texts):
        name = f"{voice}{place:04}"
        settings = {
            "duration_stretch": rng.uniform(0.75, 1.35),
            "int_f0_target_mean": FLITE[voice] * rng.uniform(0.85, 1.5),
        }
        options = [part for key, value in settings.items() for part in ("--setf", f"{key}={value:.3f}")]
        command = ["flite", "-voice", voice, "-psdur", *options, "-t", text, "-o", str(output / f"{name}.wav")]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        ends = [(phone, float(end)) for phone, _, end in (item.partition(":") for item in listed)]
        starts = [0.0, *(end for _, end in ends)]
        segments = [(phone, start, end) for (phone, end), start in zip(ends, starts, strict=False)]
        spoken[name] = {"text": text, "segments": name_phones(segments)}
    return spoken


def speak_with_festival(voice: str, texts: list[str], output: Path, rng: random.Random) -> dict[str, object]:
    names = [f"{voice}{place:04}" for place in range(len(texts))]
    says = [f'(say "{text}" "{output / name}")' for name, text in zip(names, texts, strict=True)]
    script = output / f"{voice}.scm"
    script.write_text("\n".join([_SAY, f"({FESTIVAL[voice]})", *says]), encoding="utf-8")
    subprocess.run(["festival", "-b", str(script)], check=True)
    script.unlink()
    spoken: dict[str, object] = {}
    for name, text in zip(names, texts, strict=True):
        segments, words = (_read_times(output / f"{name}.{kind}") for kind in ("segments", "words"))
        spoken[name] = {"text": text, "segments": name_phones(segments), "words": words}
        _resample(output / f"{name}.wav")
    return spoken


def _read_times(path: Path) -> list[Interval]:
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    path.unlink()
    return [(name, float(start), float(end)) for name, start, end in rows]


def _resample(path: Path) -> None:
    """To the 16 kHz of all the other voices."""
    with wave.open(str(path)) as file:
        rate = file.getframerate()
    if rate != 16_000:
        other = path.with_suffix(".16k.wav")
        subprocess.run(["sox", str(path), "-r", "16000", "-b", "16", str(other)], check=True)
        other.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--voice", choices=(*FLITE, *FESTIVAL), required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    texts = read_texts(arguments.texts)
    rng.shuffle(texts)
    arguments.output.mkdir(parents=True, exist_ok=True)
    speak: Callable[..., dict[str, object]] = speak_with_flite if arguments.voice in FLITE else speak_with_festival
    spoken = speak(arguments.voice, texts[: arguments.count], arguments.output.resolve(), rng)
    (arguments.output / f"{arguments.voice}.json").write_text(json.dumps(spoken), encoding="utf-8")


if __name__ == "__main__":
    main()
