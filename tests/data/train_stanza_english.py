"""Trains the small English stanza package of engines/models/stanza-en-ewt-small with stanza's own trainers.

    python tests/data/train_stanza_english.py --treebank DIR --vectors FILE --output DIR [--words FILE]

DIR has CoNLL-U files of Universal Dependencies English EWT; FILE is GloVe's text format or wink-embeddings' JSON. Every
8th document is held out and never seen in training, every 16th stops the training early. The rest is seen twice: as it
is, and as a CHAT transcript would have it (spoken_english.py). An hour or two on one core; --steps runs a part.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stanza
import torch
from spoken_english import (
    INTERJECTIONS,
    NAMES,
    Sentence,
    contractions,
    expansions,
    read_documents,
    read_sentence,
    transcript,
    types,
)
from stanza.models import lemmatizer, mwt_expander, parser, tagger, tokenizer
from stanza.models.common.pretrain import PretrainedWordVocab
from stanza.models.common.utils import ud_scores
from stanza.models.common.vocab import UNK_ID, VOCAB_PREFIX
from stanza.utils.conll import CoNLL
from stanza.utils.datasets.conllu_to_text import convert_text
from stanza.utils.datasets.prepare_tokenizer_data import main as label_characters

PACKAGE = "ewt_small"
TREEBANK = "en_ewt"  # stanza picks the kind of XPOS vocabulary by this name
SEED = 1234
PROCESSORS = ("tokenize", "mwt", "pos", "lemma", "depparse")
METRICS = ("UPOS", "XPOS", "UFeats", "Lemmas", "UAS", "LAS")


# Files for stanza's trainers


def write(path: Path, sentences: Iterable[Sentence]) -> None:
    path.write_text("".join(sentence.conllu() for sentence in sentences), encoding="utf-8")


def prepare(treebank: Path, work: Path) -> None:
    """The parts, and what the tokenizer and the expander are trained on."""
    parts: dict[str, list[Sentence]] = {"train": [], "dev": [], "test": []}
    for number, document in enumerate(read_documents(sorted(treebank.glob("*.conllu")))):
        parts["test" if number % 8 == 7 else "dev" if number % 16 == 3 else "train"] += document
    for name, sentences in parts.items():
        spoken = transcript(sentences, random.Random(SEED) if name == "train" else None)
        write(work / f"{name}.written.conllu", sentences)
        write(work / f"{name}.spoken.conllu", spoken)
        write(work / f"{name}.conllu", sentences + spoken)
        print(f"{name}: {len(sentences)} sentences, {sum(len(s.words) for s in sentences)} words; {len(spoken)} spoken")
        for kind in ("", ".written", ".spoken"):
            base = work / f"{name}{kind}"
            convert_text(f"{base}.conllu", f"{base}.txt")
            label_characters([f"{base}.txt", f"{base}.conllu", "-o", f"{base}.labels", "-m", f"{base}.mwt.json"])
    read = [read_sentence(block) for block in (work / "train.conllu").read_text("utf-8").strip().split("\n\n")]
    write(work / "train.types.conllu", types(read))
    write(work / "train.mwt.conllu", expansions(read, random.Random(SEED)) + contractions())


def read_vectors(path: Path) -> Iterator[tuple[str, list[float]]]:
    """Words and their vectors, the most frequent first: GloVe's text, or the JSON of wink-embeddings-sg."""
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        for word in content["words"]:
            yield word, content["vectors"][word][: content["dimensions"]]
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, *values = line.rstrip().split(" ")
            yield word, [float(value) for value in values]


def reduce_vectors(vectors: Path, words: Path | None, work: Path, output: Path, size: int, dimensions: int) -> None:
    """The `size` most frequent words and those of the training part, on their first principal components."""
    trained = {
        line.split("\t")[1].lower() for line in (work / "train.conllu").read_text("utf-8").split("\n") if "\t" in line
    }
    ranked = words.read_text(encoding="utf-8").split("\n")[:size] if words else None
    wanted = trained | set(INTERJECTIONS) | {name.lower() for name in NAMES} | set(ranked or ())
    kept = {w: v for n, (w, v) in enumerate(read_vectors(vectors)) if w in wanted or (ranked is None and n < size)}
    matrix = np.array(list(kept.values()), dtype=np.float64)
    matrix -= matrix.mean(axis=0)
    components = np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1][:, :dimensions]
    matrix = matrix @ (components * np.sign(components.sum(axis=0)))
    matrix /= matrix.std()
    # 16 bits would do, but stanza multiplies them as they are: float32 whose low bits are zero, which compresses.
    emb = torch.zeros(len(VOCAB_PREFIX) + len(kept), dimensions)
    emb[len(VOCAB_PREFIX) :] = torch.from_numpy(matrix).half().float()
    emb[UNK_ID] = emb[-1000:].mean(dim=0).half().float()
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"vocab": PretrainedWordVocab(list(kept), lang="en").state_dict(), "emb": emb}, output)
    print(f"{len(kept)} word vectors of {dimensions} dimensions")


# Training


def trainer_arguments(work: Path, name: str, train: str = "train", dev: str = "dev") -> list[str]:
    return [
        *("--shorthand", TREEBANK, "--seed", str(SEED), "--save_dir", str(work), "--save_name", f"{name}.pt", "--cpu"),
        *("--train_file", str(work / f"{train}.conllu"), "--eval_file", str(work / f"{dev}.conllu")),
    ]


def train_tokenizer(work: Path, scale: float) -> None:
    tokenizer.main([
        *("--shorthand", TREEBANK, "--lang", "en", "--seed", str(SEED), "--save_dir", str(work), "--cpu"),
        *("--save_name", "tokenize.pt", "--txt_file", str(work / "train.txt")),
        *("--label_file", str(work / "train.labels"), "--mwt_json_file", str(work / "train.mwt.json")),
        *("--dev_txt_file", str(work / "dev.txt"), "--dev_label_file", str(work / "dev.labels")),
        *("--dev_conll_gold", str(work / "dev.conllu"), "--conll_file", str(work / "dev.tokenized.conllu")),
        *("--steps", str(max(int(160 * scale), 20)), "--lr0", "0.006", "--eval_steps", "20"),
        *("--max_seqlen", "300", "--use_mwt"),
    ])  # fmt: skip


def train_expander(work: Path, scale: float) -> None:
    mwt_expander.main([
        *trainer_arguments(work, "mwt", "train.mwt"), "--gold_file", str(work / "dev.conllu"),
        *("--lang", "en", "--hidden_dim", "50", "--emb_dim", "25", "--non_mwt_replacement", "0.25"),
        *("--num_epoch", str(max(int(40 * scale), 2))),
    ])  # fmt: skip


def train_tagger(work: Path, vectors: Path, scale: float) -> None:
    tagger.main([
        *trainer_arguments(work, "pos"), "--lang", "en", "--wordvec_pretrain_file", str(vectors),
        *("--hidden_dim", "125", "--num_layers", "2", "--char_emb_dim", "32", "--char_hidden_dim", "100"),
        *("--transformed_dim", "75", "--word_emb_dim", "50", "--word_cutoff", "7", "--tag_emb_dim", "20"),
        *("--deep_biaff_hidden_dim", "100", "--composite_deep_biaff_hidden_dim", "50", "--batch_size", "100"),
        *("--max_steps", str(int(1400 * scale)), "--eval_interval", "100", "--max_steps_before_stop", "300"),
        *("--fix_eval_interval", "--augment_nopunct", "0.15", "--second_lr", "0.001"),
    ])  # fmt: skip


def train_lemmatizer(work: Path, scale: float) -> None:
    lemmatizer.main([
        *trainer_arguments(work, "lemma", "train.types"), "--secondary_file", str(work / "train.conllu"),
        *("--hidden_dim", "100", "--emb_dim", "32", "--pos_dim", "32", "--batch_size", "50", "--lr", "0.002"),
        *("--num_epoch", str(max(int(3 * scale), 1))),
    ])  # fmt: skip


def train_parser(work: Path, vectors: Path, scale: float) -> None:
    parser.main([
        *trainer_arguments(work, "depparse"), "--lang", "en", "--wordvec_pretrain_file", str(vectors),
        *("--hidden_dim", "128", "--num_layers", "2", "--char_emb_dim", "32", "--char_hidden_dim", "100"),
        *("--transformed_dim", "75", "--word_emb_dim", "50", "--word_cutoff", "7", "--tag_emb_dim", "32"),
        *("--deep_biaff_hidden_dim", "80", "--deep_biaff_output_dim", "64", "--no_ufeats", "--no_checkpoint"),
        *("--batch_size", "1500", "--max_steps", str(int(1800 * scale)), "--eval_interval", "100"),
        *("--max_steps_before_stop", "800", "--second_optim_start_step", str(int(1300 * scale))),
        *("--optim", "adam", "--lr", "0.002", "--beta2", "0.95", "--second_lr", "0.0006", "--augment_nopunct", "0.1"),
    ])  # fmt: skip


# The package


def shrunk(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with weights in 16 bits, which loading widens again, and without the paths of the training."""
    model = checkpoint.get("model")
    if model is not None:
        checkpoint["model"] = {name: w.half() if w.is_floating_point() else w for name, w in model.items()}
    config = checkpoint["config"]
    for key, value in config.items():
        if isinstance(value, str) and "/" in value:
            config[key] = ""
    checkpoint.pop("optimizer_state_dict", None)
    checkpoint.pop("scheduler_state_dict", None)
    if "dev_score_history" in checkpoint:
        checkpoint["dev_score_history"] = []
    return checkpoint


def package(work: Path, output: Path) -> None:
    """The folder as stanza.Pipeline(dir=...) reads it."""
    vectors = [{"model": "pretrain", "package": PACKAGE}]
    resources: dict[str, Any] = {processor: {PACKAGE: {}} for processor in (*PROCESSORS, "pretrain")}
    for processor in PROCESSORS:
        target = output / "en" / processor / f"{PACKAGE}.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(shrunk(torch.load(work / f"{processor}.pt", weights_only=True)), target)
        if processor in {"pos", "depparse"}:
            resources[processor][PACKAGE]["dependencies"] = vectors
    packages = {name: dict.fromkeys(PROCESSORS, PACKAGE) for name in ("default", PACKAGE)}
    english = resources | {
        "default_processors": dict.fromkeys(PROCESSORS, PACKAGE),
        "default_dependencies": {"pos": vectors, "depparse": vectors},
        "packages": packages,
        "lang_name": "English",
    }
    (output / "resources.json").write_text(json.dumps({"en": english}, indent=1) + "\n", encoding="utf-8")
    for file in sorted(output.rglob("*.pt")):
        print(f"{file.relative_to(output)}: {file.stat().st_size / 1e6:.2f} MB")


def pipeline(output: Path, **options: Any) -> stanza.Pipeline:
    return stanza.Pipeline(
        "en", dir=str(output), package=PACKAGE, download_method=None, use_gpu=False, logging_level="ERROR", **options
    )


def score(work: Path, output: Path) -> None:
    """Scores of the held-out part (CoNLL 2018's evaluation), as it is and as a transcript has it."""
    gold_tokens = pipeline(output, processors="tokenize,pos,lemma,depparse", tokenize_pretokenized=True)
    raw_text = pipeline(output, processors=",".join(PROCESSORS))
    for part in ("test.written", "test.spoken"):
        gold = work / f"{part}.conllu"
        predicted = work / f"{part}.predicted.conllu"
        CoNLL.write_doc2conll(gold_tokens(unanalysed(CoNLL.conll2doc(str(gold)))), str(predicted))
        print(part, "gold tokens", figures(ud_scores(str(gold), str(predicted)), METRICS))
        CoNLL.write_doc2conll(raw_text(gold.with_suffix(".txt").read_text(encoding="utf-8")), str(predicted))
        metrics = ("Tokens", "Sentences", "Words", *METRICS)
        print(part, "raw text", figures(ud_scores(str(gold), str(predicted)), metrics))


def unanalysed(document: Any) -> Any:
    for word in document.iter_words():
        word.lemma = word.upos = word.xpos = word.feats = None
    return document


def figures(scores: Any, metrics: Sequence[str]) -> str:
    return " ".join(f"{metric} {100 * scores[metric].f1:.1f}" for metric in metrics)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--treebank", type=Path, required=True, help="folder with CoNLL-U files")
    arguments.add_argument("--vectors", type=Path, required=True, help="word vectors: GloVe text or wink's JSON")
    arguments.add_argument("--output", type=Path, required=True, help="folder of the package")
    arguments.add_argument("--work", type=Path, default=Path("stanza-en-work"), help="folder for files in between")
    arguments.add_argument("--words", type=Path, help="words, most frequent first, one a line; default: as the vectors")
    arguments.add_argument("--vocabulary", type=int, default=13000, help="how many frequent words have vectors")
    arguments.add_argument("--dimensions", type=int, default=50, help="of the word vectors")
    arguments.add_argument("--scale", type=float, default=1.0, help="of the lengths of the trainings; 0.05 for a trial")
    arguments.add_argument("--steps", help="a part of: prepare,pretrain,tokenize,mwt,pos,lemma,depparse,package,score")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("stanza").setLevel("INFO")
    work, output, scale = chosen.work, chosen.output, chosen.scale
    work.mkdir(parents=True, exist_ok=True)
    vectors = output / "en" / "pretrain" / f"{PACKAGE}.pt"
    if not list(chosen.treebank.glob("*.conllu")):
        arguments.error(f"{chosen.treebank}: no CoNLL-U file there; give the folder of UD English EWT")
    steps: dict[str, Callable[[], None]] = {
        "prepare": lambda: prepare(chosen.treebank, work),
        "pretrain": lambda: reduce_vectors(
            chosen.vectors, chosen.words, work, vectors, chosen.vocabulary, chosen.dimensions
        ),
        "tokenize": lambda: train_tokenizer(work, scale),
        "mwt": lambda: train_expander(work, scale),
        "pos": lambda: train_tagger(work, vectors, scale),
        "lemma": lambda: train_lemmatizer(work, scale),
        "depparse": lambda: train_parser(work, vectors, scale),
        "package": lambda: package(work, output),
        "score": lambda: score(work, output),
    }
    for step in chosen.steps.split(",") if chosen.steps else steps:
        began = time.monotonic()
        steps[step]()
        print(f"{step}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
