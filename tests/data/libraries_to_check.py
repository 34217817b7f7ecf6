"""Popular libraries as a service has them: `load_NAME` makes an object ready to be used, `infer_NAME` uses it.

Results are rounded: how a sum is split over threads shows in its last digits. Services that a library talks to run in a
process of their own (library_services.py), which ends with the process that has started it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

_SERVICES = Path(__file__).with_name("library_services.py")
_kept: list[Any] = []


def _start(service: str) -> int:
    """The port that it listens at."""
    program = subprocess.Popen(
        [sys.executable, str(_SERVICES), service], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    _kept.append(program)
    return int(program.stdout.readline())


def load_numpy() -> Any:
    import numpy as np

    return np.arange(640_000, dtype=np.float64).reshape(800, 800) % 7


def infer_numpy(matrix: Any) -> list[float]:
    return [round(float(value), 3) for value in (matrix @ matrix)[::100, 3]]


def load_scipy() -> Any:
    import numpy as np
    import scipy.linalg

    _kept.append(scipy.linalg)
    return np.eye(400) * 9 + np.arange(160_000).reshape(400, 400) % 5


def infer_scipy(matrix: Any) -> float:
    import scipy.linalg

    return round(float(scipy.linalg.lu_factor(matrix)[0][7, 7]), 3)


def _make_table(rows: int = 4000) -> tuple[Any, Any]:
    import numpy as np

    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, 20))
    return features, (features[:, 0] + features[:, 1] ** 2 > 1).astype(int)


def load_sklearn() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    features, classes = _make_table()
    return HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(features, classes), features


def infer_sklearn(model: Any) -> list[float]:
    return [round(float(value), 4) for value in model[0].predict_proba(model[1])[:20, 1]]


def load_lightgbm() -> Any:
    """Trained elsewhere, as a model of a service is, and read from a file."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lightgbm; from libraries_to_check import _make_table\n"
        "x, y = _make_table(); settings = {'objective': 'binary', 'verbose': -1, 'seed': 0}\n"
        "lightgbm.train(settings, lightgbm.Dataset(x, y), 20).save_model(sys.argv[2])"
    )
    path = _make_file("model.txt", code)
    import lightgbm

    return lightgbm.Booster(model_file=path), _make_table()[0]


def infer_lightgbm(model: Any) -> list[float]:
    return [round(float(value), 4) for value in model[0].predict(model[1])[:20]]


def load_xgboost() -> Any:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import xgboost; from libraries_to_check import _make_table\n"
        "x, y = _make_table(); settings = {'objective': 'binary:logistic', 'seed': 0}\n"
        "xgboost.train(settings, xgboost.DMatrix(x, y), 20).save_model(sys.argv[2])"
    )
    path = _make_file("model.json", code)
    import xgboost

    return xgboost.Booster(model_file=path), _make_table()[0]


def infer_xgboost(model: Any) -> list[float]:
    return [round(float(value), 4) for value in model[0].inplace_predict(model[1])[:20]]


def load_polars() -> Any:
    import polars

    return polars.DataFrame({"key": [number % 50 for number in range(200_000)], "value": list(range(200_000))})


def infer_polars(frame: Any) -> list[int]:
    import polars

    return [int(v) for v in frame.group_by("key").agg(polars.col("value").sum()).sort("key")["value"][:10]]


def load_duckdb() -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("create table numbers as select range % 50 as key, range as value from range(500000)")
    return connection


def infer_duckdb(connection: Any) -> list[int]:
    rows = connection.execute("select sum(value) from numbers group by key order by key limit 10").fetchall()
    return [int(value) for (value,) in rows]


def load_pyarrow() -> Any:
    import pyarrow

    return pyarrow.table({"key": [n % 50 for n in range(200_000)], "value": list(range(200_000))})


def infer_pyarrow(table: Any) -> list[int]:
    sums = table.group_by("key").aggregate([("value", "sum")]).sort_by("key")
    return [value.as_py() for value in sums["value_sum"][:10]]


def load_faiss() -> Any:
    import faiss
    import numpy as np

    vectors = np.random.default_rng(0).normal(size=(5000, 32)).astype("float32")
    index = faiss.IndexFlatL2(32)
    index.add(vectors)
    return index, vectors[:200]


def infer_faiss(index: Any) -> list[int]:
    return [int(number) for number in index[0].search(index[1], 3)[1][:20, 1]]


def load_onnxruntime() -> Any:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = (np.arange(512 * 512).reshape(512, 512) % 7).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 512])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, np.ones((256, 512), "float32")


def infer_onnxruntime(model: Any) -> list[float]:
    return [round(float(value), 2) for value in model[0].run(None, {"x": model[1]})[0][0, :20]]


def load_tokenizers() -> Any:
    import tokenizers

    words = {word: number for number, word in enumerate(["?", *"abcdefghij"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def infer_tokenizers(tokenizer: Any) -> list[int]:
    return [sum(encoding.ids) for encoding in tokenizer.encode_batch(["a b c d", "e f g"] * 2000)[:10]]


def load_spacy() -> Any:
    import spacy

    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    return language


def infer_spacy(language: Any) -> list[str]:
    return [sentence.text for sentence in language("This is one. And this is another one. " * 50).sents][:4]


def load_torch() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8)).eval()


def infer_torch(model: Any) -> list[float]:
    import torch

    with torch.inference_mode():
        return [round(value, 3) for value in model(torch.ones(256, 512))[0].tolist()]


def load_transformers() -> Any:
    """As sentence-transformers has it: a tokenizer and a BERT, whose tokens' vectors are averaged."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    model: torch.nn.Module = BertModel(config)
    return load_tokenizers(), model.eval()


def infer_transformers(models: Any) -> list[float]:
    import torch

    tokens = torch.tensor([encoding.ids for encoding in models[0].encode_batch(["a b c d e f g h"] * 64)])
    with torch.inference_mode():
        return [round(value, 2) for value in models[1](tokens).last_hidden_state.mean(1)[0, :10].tolist()]


def load_opencv() -> Any:
    import cv2
    import numpy as np

    _kept.append(cv2)
    return (np.arange(3_000_000).reshape(1000, 1000, 3) % 251).astype("uint8")


def infer_opencv(image: Any) -> list[int]:
    import cv2

    return [int(value) for value in cv2.GaussianBlur(cv2.resize(image, (1500, 1500)), (9, 9), 2)[700, 700]]


def load_jax() -> Any:
    import jax

    return jax.jit(lambda x: (x @ x).sum(0)), jax.numpy.arange(360_000.0).reshape(600, 600) % 7


def infer_jax(model: Any) -> list[float]:
    return [round(float(value), 0) for value in model[0](model[1])[:10]]


def load_tensorflow() -> Any:
    import tensorflow

    weights = tensorflow.reshape(tensorflow.range(262_144, dtype=tensorflow.float32), (512, 512)) % 7
    return tensorflow.function(lambda x: tensorflow.reduce_sum(x @ weights, 0)), tensorflow.ones((256, 512))


def infer_tensorflow(model: Any) -> list[float]:
    return [round(float(value), 0) for value in model[0](model[1])[:10]]


def load_grpc() -> Any:
    import grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{_start('grpc')}")
    return channel.unary_unary("/words/Echo", request_serializer=bytes, response_deserializer=bytes)


def infer_grpc(echo: Any) -> list[str]:
    return [echo(f"word {number}".encode(), timeout=20).decode() for number in range(5)]


def load_sqlite() -> Any:
    """A database of a file that does not fit into SQLite's cache of 2 MB."""
    import sqlite3

    connection = sqlite3.connect(Path(tempfile.mkdtemp()) / "words.db")
    connection.execute("create table words (number integer primary key, word text)")
    rows = [(number, f"word {number} {'x' * 200}") for number in range(30_000)]
    connection.executemany("insert into words values (?, ?)", rows)
    connection.commit()
    return connection


def infer_sqlite(connection: Any) -> list[str]:
    found = []
    for number in range(0, 30_000, 1500):
        (word,) = connection.execute("select word from words where number = ?", (number,)).fetchone()
        found.append(word[:12])
    return found


def load_redis() -> Any:
    import redis

    return redis.Redis("127.0.0.1", _start("redis"), protocol=2, lib_name=None, lib_version=None)


def infer_redis(client: Any) -> list[str]:
    return [client.echo(f"word {number}").decode() for number in range(10)]


def load_boto3() -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.session.Session("key", "secret", region_name="eu-west-1")
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
    return session.client("s3", endpoint_url=f"http://127.0.0.1:{_start('http')}", config=config)


def infer_boto3(client: Any) -> list[str]:
    keys = [f"word-{number}" for number in range(5)]
    return [client.get_object(Bucket="words", Key=key)["Body"].read().decode() for key in keys]


def load_opentelemetry() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{_start('http')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def infer_opentelemetry(provider: Any) -> bool:
    with provider.get_tracer("words").start_as_current_span("word"):
        pass
    return bool(provider.force_flush(5000))


def load_sentry() -> Any:
    import sentry_sdk

    port = _start("http")
    sentry_sdk.init(f"http://key@127.0.0.1:{port}/1", default_integrations=False)
    return port


def infer_sentry(port: int) -> bool:
    """Whether an event has arrived."""
    import sentry_sdk

    event = sentry_sdk.capture_message("word")
    sentry_sdk.flush(5)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen/{event}") as answer:
        return answer.read() == b"yes"  # type: ignore[no-any-return]


def _make_file(name: str, code: str) -> str:
    path = str(Path(tempfile.mkdtemp()) / name)
    command = [sys.executable, "-c", code, str(Path(__file__).parent), path]
    subprocess.run(command, check=True, capture_output=True)
    return path
