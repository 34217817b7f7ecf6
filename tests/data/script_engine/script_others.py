"""What is no module of torch: models of other packages, tables, files, connections."""

from __future__ import annotations

import mmap
import sqlite3
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from script_kinds import Made, kind


def _rows() -> np.ndarray[Any, Any]:
    return np.linspace(-1, 1, 240).reshape(30, 8) ** 3


def _classes() -> np.ndarray[Any, Any]:
    return np.arange(30) % 3


def _file(content: bytes) -> Path:
    """A file that stays as long as something has it open."""
    folder = Path(tempfile.mkdtemp(prefix="prefork-test-"))
    path = folder / "file"
    path.write_bytes(content)
    return path


def _remove(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


@kind("scikit-learn, logistic regression", needs="sklearn")
def make_regression() -> Made:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(_rows(), _classes()), lambda model: model.predict_proba(_rows())


@kind("scikit-learn, random forest", needs="sklearn")
def make_forest() -> Made:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_estimators=5, random_state=0, n_jobs=1)
    return model.fit(_rows(), _classes()), lambda model: model.predict_proba(_rows())


@kind("scikit-learn, a pipeline", needs="sklearn")
def make_pipeline() -> Made:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    model = make_pipeline(StandardScaler(), PCA(4), SVC())
    return model.fit(_rows(), _classes()), lambda model: model.decision_function(_rows())


@kind("scikit-learn, boosting", needs="sklearn")
def make_boosting() -> Made:
    """Computes with OpenMP, as it learns and as it predicts."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=3, random_state=0)
    return model.fit(_rows(), _classes()), lambda model: model.predict_proba(_rows())


@kind("scipy, sparse", needs="scipy")
def make_scipy() -> Made:
    from scipy import sparse

    return sparse.csr_matrix(_rows() * (_rows() > 0)), lambda model: model @ np.ones(8)


@kind("numpy")
def make_numpy() -> Made:
    return {"weight": _rows(), "bias": np.ones(8)}, lambda model: model["weight"] + model["bias"]


@kind("memmap")
def make_memmap() -> Made:
    path = _file(_rows().tobytes())
    table = np.memmap(path, np.float64, "r", shape=(30, 8))
    _remove(path)
    return table, lambda table: table @ np.ones(8)


@kind("memmap under a tensor")
def make_memmap_tensor() -> Made:
    path = _file(_rows().tobytes())
    table = torch.from_numpy(np.memmap(path, np.float64, "r+", shape=(30, 8)))
    _remove(path)
    return table, lambda table: table @ torch.ones(8, dtype=torch.float64)


@kind("mmap")
def make_mmap() -> Made:
    path = _file(bytes(range(200)))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _remove(path)
    return mapping, lambda mapping: mapping[10:50]


@kind("an open file")
def make_file() -> Made:
    path = _file(b"".join(b"line %d\n" % number for number in range(50)))
    file = path.open("rb")
    _remove(path)

    def run(file: Any) -> Any:
        file.seek(70)
        return file.read(40)

    return file, run


@kind("safetensors, an open file")
def make_safetensors() -> Made:
    from safetensors import safe_open
    from safetensors.torch import save

    path = _file(save({"weight": torch.arange(12.0)}))
    opened: Any = safe_open(path, "pt")
    handle = opened.__enter__()
    _remove(path)
    return handle, lambda handle: handle.get_tensor("weight")


@kind("tokenizers")
def make_tokenizer() -> Made:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "small": 2, "sentence": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def run(tokenizer: Any) -> Any:
        return [one.ids for one in tokenizer.encode_batch(["a small sentence", "another small one"] * 20)]

    return tokenizer, run


@kind("a fast tokenizer of transformers")
def make_fast_tokenizer() -> Made:
    import transformers

    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=make_tokenizer()[0], unk_token="[UNK]", pad_token="[UNK]")
    return tokenizer, lambda tokenizer: tokenizer(["a small sentence", "small"], padding=True)["input_ids"]


@kind("SQLite in memory")
def make_sqlite() -> Made:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("create table words (word text, number integer)")
    connection.executemany("insert into words values (?, ?)", [(f"word{number}", number) for number in range(50)])
    connection.commit()

    def run(connection: Any) -> Any:
        return [list(row) for row in connection.execute("select word, number from words where number > 40 order by 2")]

    return connection, run


@kind("SQLite of a file")
def make_sqlite_file() -> Made:
    path = _file(make_sqlite()[0].serialize())
    return sqlite3.connect(path, check_same_thread=False), make_sqlite()[1]


@kind("onnxruntime", needs="onnxruntime", alone=True)
def make_onnx() -> Made:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(32, dtype=np.float32).reshape(8, 4), "weight")
    node = helper.make_node("MatMul", ["value", "weight"], ["output"])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 8])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph([node], "graph", [value], [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, lambda session: session.run(None, {"value": _rows()[:3].astype(np.float32)})


@kind("a regular expression and a date")
def make_plain() -> Made:
    import datetime
    import re

    parts = {"pattern": re.compile(r"(\w)\1"), "day": datetime.date(2020, 2, 29), "names": frozenset("abc")}
    return parts, lambda parts: [parts["pattern"].findall("aabbc"), parts["day"].isoformat(), sorted(parts["names"])]


@kind("a thread-local")
def make_local() -> Made:
    local = threading.local()
    local.weight = torch.arange(4.0)
    return local, lambda local: local.weight * 2


@kind("threads of its own", alone=True)
def make_pooled() -> Made:
    """They are not in a forked child."""
    pool = ThreadPoolExecutor(2)
    pool.submit(int).result()
    return pool, lambda pool: pool.submit(sum, (1, 2, 3)).result()
