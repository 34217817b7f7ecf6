"""Makes the included Whisper model of a checkpoint: python tests/data/shrink_whisper.py CHECKPOINT FOLDER

The weights of linear layers and of the embedding become int8, with a scale for each row in float32 (`weight_scale`);
all else is float16. That is what prefork makes of them anyway where the processor multiplies int8.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")
_LIMIT = 127


def shrink(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices but the positions as int8 and scales, the rest as float16."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or "embed_positions" in name:
            found[name] = tensor.half().contiguous()
            continue
        scales = tensor.float().abs().amax(1).clamp_min(1e-12) / _LIMIT
        found[name] = (tensor.float() / scales[:, None]).round().to(torch.int8)
        found[f"{name}_scale"] = scales
    return found


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    save_file(shrink(load_file(source / "model.safetensors")), target / "model.safetensors")


if __name__ == "__main__":
    main()
