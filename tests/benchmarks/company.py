"""Whether a segment's result depends on who shares its batch: `python tests/benchmarks/company.py [DTYPE ...]`.

Every segment of ../shared/data/speech goes through the model alone and in random company of seven: the embedded
aligner, small wav2vec2 models of random weights, one for each way of normalising, and whisper-tiny.en, aligning and
recognising. By default float32; about ten minutes on two cores.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from prefork.engines.base import Engine, Job, Segment, Tensors  # noqa: E402
from prefork.engines.ctc.aligner import EMBEDDED, CTCAligner  # noqa: E402
from prefork.engines.text.document import Document, Word  # noqa: E402
from prefork.engines.text.formats import open_document  # noqa: E402
from prefork.engines.whisper.aligner import WhisperAligner  # noqa: E402
from prefork.engines.whisper.asr import WhisperASR  # noqa: E402
from prefork.pool.pipeline import Intake  # noqa: E402
from prefork.run.corpus import find_jobs  # noqa: E402
from tests.benchmarks.results import Results  # noqa: E402

SPEECH = ROOT.parent / "shared" / "data" / "speech"
WHISPER = str(ROOT.parent / "shared" / "models" / "whisper-tiny.en")
COMPANY = 8
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
}
Item = tuple[Job, Segment, Tensors]


def build_tiny(folder: Path, norm: str) -> str:
    """A wav2vec2 of random weights that is sure of what it says, with the embedded model's vocabulary."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(3)
    model: Any = Wav2Vec2ForCTC(Wav2Vec2Config(**_TINY, feat_extract_norm=norm))
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_bytes((EMBEDDED / "vocab.json").read_bytes())
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def list_engines(folder: Path, dtype: str) -> Iterator[tuple[str, Engine, Intake]]:
    yield "embedded aligner", CTCAligner(dtype=dtype), Intake.PAIRS
    for norm in ("layer", "group"):
        yield f"wav2vec2, {norm} norm", CTCAligner(build_tiny(folder / norm, norm), dtype=dtype), Intake.PAIRS
    yield "whisper-tiny.en, aligning", WhisperAligner(WHISPER, dtype=dtype), Intake.PAIRS
    yield "whisper-tiny.en, recognising", WhisperASR(WHISPER, dtype=dtype), Intake.RECORDINGS


def prepare(engine: Engine, intake: Intake) -> list[Item]:
    items = []
    for job in find_jobs(SPEECH, None, intake=intake).jobs:
        if "untimed" in job.id:
            continue
        document = (
            open_document(job.source, job.media, job.seconds)
            if intake is Intake.PAIRS
            else Document((), languages=("eng",))
        )
        items += [(job, segment, engine.prepare(job, segment)) for segment in engine.split(job, document)]
    return items


def compare(engine: Engine, intake: Intake) -> list[str]:
    """Largest difference of log-probabilities, segments with the same bits, texts and word times that changed, and how
    long both took."""
    engine.setup()
    model, items = engine.load(), prepare(engine, intake)
    model.batch_invariant = False  # so that nothing is recalled
    random.seed(0)
    order = random.sample(range(len(items)), len(items))
    with torch.inference_mode():
        began = time.perf_counter()
        alone = [engine.infer(model, [tensors])[0] for _, _, tensors in items]
        middle = time.perf_counter()
        together: dict[int, Tensors] = {}
        for start in range(0, len(order), COMPANY):
            some = order[start : start + COMPANY]
            together |= dict(zip(some, engine.infer(model, [items[k][2] for k in some]), strict=True))
        ended = time.perf_counter()
    outputs = [(alone[k], together[k]) for k in range(len(items))]
    shaped = [(a["log_probs"], b["log_probs"]) for a, b in outputs if a["log_probs"].shape == b["log_probs"].shape]
    worst = max(float((a - b).abs().max()) for a, b in shaped if a.numel())
    same = sum(all(torch.equal(a[name], b[name]) for name in a) for a, b in outputs)
    words = [
        (list_words(engine.finish(job, segment, a)), list_words(engine.finish(job, segment, b)))
        for (job, segment, _), (a, b) in zip(items, outputs, strict=True)
    ]
    texts = sum([w.text for w in a] != [w.text for w in b] for a, b in words)
    moved = sum((v.start, v.end) != (w.start, w.end) for a, b in words for v, w in zip(a, b, strict=False))
    total = sum(len(a) for a, _ in words)
    return [
        f"{worst:.1e}",
        f"{same} of {len(items)}",
        f"{texts} of {len(items)}",
        f"{moved} of {total}",
        f"{(middle - began) / (ended - middle):.2f} x",
    ]


def list_words(piece: Any) -> Sequence[Word]:
    found = piece.words
    return [word for line in found for word in line] if found and not isinstance(found[0], Word) else found


def main() -> None:
    torch.set_num_threads(1)
    columns = ("largest difference", "same bits", "texts changed", "word times changed", "speed in company")
    with Results() as results, tempfile.TemporaryDirectory() as folder:
        table = results.add_table("model", "dtype", *columns)
        for dtype in sys.argv[1:] or ["float32"]:
            for name, engine, intake in list_engines(Path(folder), dtype):
                row = compare(engine, intake)
                table.add(name, dtype, *row)


if __name__ == "__main__":
    main()
