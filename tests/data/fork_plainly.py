"""What children of a plain fork really do with a model: the truth that a verdict is held against.

    python fork_plainly.py FILE NAME alone|fresh|used SECONDS

Shares no code with prefork. alone: no fork; says the result, and how long it took. fresh, used: four children, forked
before or after this process has used the model, use it again and again at once; those that have no result after so many
seconds hang. Says what became of each, as JSON: a list of results, with how often each came, or what it died of.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections import Counter
from typing import Any

CHILDREN = 4
SECONDS = 1.0  # for which a child uses it again and again


def use(infer: Any, model: Any, seconds: float) -> Counter[str]:
    until, found = time.monotonic() + seconds, Counter[str]()
    while True:
        found[repr(infer(model))] += 1
        if time.monotonic() > until:
            return found


def fork(infer: Any, model: Any) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        answer = json.dumps(use(infer, model, SECONDS))
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the truth
        answer = json.dumps({f"raised {type(error).__name__}": 1})
    while answer:
        answer = answer[os.write(writing, answer.encode()) :]
    os._exit(0)


def watch(pid: int, reading: int, until: float) -> Any:
    os.set_blocking(reading, False)
    answer = b""
    while True:
        try:
            piece = os.read(reading, 65_536)
        except BlockingIOError:
            if time.monotonic() > until:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                return {"hung": 1}
            time.sleep(0.01)
            continue
        if not piece:
            break
        answer += piece
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(answer) if answer else {f"died with {status}": 1}


def main(file: str, name: str, state: str, seconds: float) -> None:
    spec = importlib.util.spec_from_file_location("libraries_to_check", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    infer = getattr(module, f"infer_{name}")
    model = getattr(module, f"load_{name}")()
    began = time.monotonic()
    if state == "alone":
        found: Any = [use(infer, model, 0.0), time.monotonic() - began]
    else:
        if state == "used":
            infer(model)
        children = [fork(infer, model) for _ in range(CHILDREN)]
        until = time.monotonic() + seconds
        found = [watch(pid, reading, until) for pid, reading in children]
    os.write(int(os.environ["ANSWER"]), json.dumps(found).encode())
    os._exit(0)  # whatever the library has left running


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
