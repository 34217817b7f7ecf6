"""TalkBank's own judge of CHAT files: the parser and validator of chatter, as batchalign 0.10.7 brings it.

It needs other versions of what prefork needs, so it runs in an environment of its own:

    python -m venv judge && judge/bin/pip install batchalign==0.10.7
    CHAT_JUDGE=judge/bin/python python -m pytest -n 0 tests/engines/test_valid_chat.py \\
        tests/engines/test_normalization.py

That also records its verdicts, by the text's digest, in tests/data/chat_verdicts.json. Without it, these count; a text
that has none fails its test.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

_RECORD = Path(__file__).resolve().parents[1] / "data" / "chat_verdicts.json"
_JUDGE = """
import sys
from batchalign.chat import CHATFile
try:
    CHATFile.parse(sys.stdin.buffer.read().decode("utf-8-sig"))
except ValueError as error:
    print(str(error).strip())
"""


def judge(text: str) -> str:
    """What TalkBank's parser has against a file; empty if it is valid."""
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    known: dict[str, str] = json.loads(_RECORD.read_text(encoding="utf-8")) if _RECORD.exists() else {}
    if python := os.environ.get("CHAT_JUDGE"):
        done = subprocess.run([python, "-c", _JUDGE], input=text.encode(), capture_output=True, timeout=60, check=True)
        known[name] = done.stdout.decode().strip()
        _RECORD.write_text(json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    assert name in known, f"no verdict is known for this text; set CHAT_JUDGE to get one:\n{text}"
    return known[name]
