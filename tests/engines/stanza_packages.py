"""A stanza package whose tagger and parser share two character models, as those of stanza's own do. Its weights are
random: what comes out makes no sense, but goes the same way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from stanza.models.common.char_model import CharacterLanguageModel
from stanza.models.common.pretrain import Pretrain
from stanza.models.common.vocab import CharVocab
from stanza.models.depparse.trainer import GraphTrainer, SubtreeCombination
from stanza.models.pos.tag_columns import tag_columns_from_config
from stanza.models.pos.trainer import Trainer as TaggerTrainer
from stanza.models.pos.vocab import MultiVocab

from prefork.engines.stanza.models import EMBEDDED

HIDDEN = 512
NAME = "ewt_small"


def write_charlm_package(folder: Path) -> int:
    """Bytes of both character models, which must lie in memory once."""
    shutil.copytree(EMBEDDED["eng"], folder)
    torch.manual_seed(1)
    size = sum(_write_charlm(folder / "en" / f"{way}_charlm" / f"{NAME}.pt", way) for way in ("forward", "backward"))
    pretrain = Pretrain(str(folder / "en" / "pretrain" / f"{NAME}.pt"))
    for processor, trainer in (("pos", TaggerTrainer), ("depparse", GraphTrainer)):
        path = folder / "en" / processor / f"{NAME}.pt"
        checkpoint = torch.load(path, weights_only=True)
        args: dict[str, Any] = {**checkpoint["config"], "charlm": True, "charlm_transform_dim": 0}
        args.setdefault("enable_gradient_checkpointing", False)
        args |= {
            f"charlm_{way}_file": str(folder / "en" / f"{way}_charlm" / f"{NAME}.pt") for way in ("forward", "backward")
        }
        if processor == "pos":
            args["tag_columns"] = tag_columns_from_config(args.get("tag_columns"))
        else:
            args["transition_subtree_combination"] = SubtreeCombination.NONE
        vocab = MultiVocab.load_state_dict(checkpoint["vocab"])
        trainer(args=args, vocab=vocab, pretrain=pretrain, device="cpu").save(str(path))
    index = json.loads((folder / "resources.json").read_text())
    for processor in ("pos", "depparse"):
        needs = index["en"][processor][NAME]["dependencies"]
        needs += [{"model": f"{way}_charlm", "package": NAME} for way in ("forward", "backward")]
    index["en"] |= {f"{way}_charlm": {NAME: {}} for way in ("forward", "backward")}
    (folder / "resources.json").write_text(json.dumps(index))
    return size


def _write_charlm(path: Path, way: str) -> int:
    args = {
        "char_emb_dim": 32,
        "char_hidden_dim": HIDDEN,
        "char_num_layers": 1,
        "char_dropout": 0.0,
        "char_rec_dropout": 0.0,
        "char_unit_dropout": 0.0,
    }
    letters = CharVocab([sorted("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'- \n")])
    model = CharacterLanguageModel(args, {"char": letters}, is_forward_lm=way == "forward")
    model.save(str(path))
    return sum(parameter.nbytes for parameter in model.parameters())
