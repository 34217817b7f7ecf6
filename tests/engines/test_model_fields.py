"""What a model's files say is checked before a library builds anything of it: the file, the field, the value."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.engines.base import LoadError
from prefork.engines.checkpoints.fields import EXTRACTOR, Rule, find_wrong, find_wrong_token, make_rules, show
from prefork.engines.checkpoints.model_folder import _find_defaults
from prefork.engines.ctc.aligner import EMBEDDED
from prefork.engines.ctc.checkpoint import count_weights, open_checkpoint
from prefork.engines.whisper.checkpoint import open_whisper

pytestmark = pytest.mark.dependencies
AGAIN = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**40),
    st.sampled_from([1e308, -1e308, math.inf, math.nan, 0.5, -1.0]),
    st.text(max_size=20),
)
VALUES = st.recursive(
    SCALARS, lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=4)
)
NESTED = '{"a":' * 100_000


def copy_model(source: Path, folder: Path) -> Path:
    """Its weights stay where they are."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path.resolve())
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
    return folder


def change(folder: Path, file: str, field: str, value: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, field: value}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_model(EMBEDDED, tmp_path / "model")


FIELDS = [
    ("config.json", "vocab_size", None),
    ("config.json", "hidden_size", None),
    ("config.json", "vocab_size", 1e308),
    ("config.json", "vocab_size", 10**30),
    ("config.json", "vocab_size", [32]),
    ("config.json", "d_model", "384"),
    ("config.json", "d_model", -384),
    ("config.json", "encoder_layers", 10**9),
    ("config.json", "encoder_layers", True),
    ("config.json", "encoder_layers", 0),
    ("config.json", "num_mel_bins", 10**7),
    ("config.json", "frame_seconds", [0.02]),
    ("config.json", "frame_seconds", math.nan),
    ("config.json", "start_offset_seconds", 1e308),
    ("config.json", "pad_token_id", 10**6),
    ("config.json", "pad_token_id", "0"),
    ("config.json", "activation_function", {"gelu": 1}),
    ("config.json", "model_type", ["whisper-ctc"]),
    ("preprocessor_config.json", "sampling_rate", "16000"),
    ("preprocessor_config.json", "hop_length", 0),
    ("preprocessor_config.json", "do_normalize", "yes"),
    ("preprocessor_config.json", "feature_size", 10**9),
    ("tokenizer_config.json", "word_delimiter_token", ["|"]),
    ("vocab.json", "x", 3.5),
    ("vocab.json", "x", -1),
    ("vocab.json", "x", True),
    ("vocab.json", "x", 10**30),
]


@pytest.mark.parametrize(("file", "field", "value"), FIELDS)
def test_a_field_that_is_not_what_it_has_to_be_is_named_with_its_file_and_value(
    folder: Path, file: str, field: str, value: Any
) -> None:
    change(folder, file, field, value)
    with pytest.raises(LoadError) as caught:
        count_weights(open_checkpoint(str(folder)))
    message = str(caught.value)
    assert f"{file}: " in message and field in message and show(value) in message
    assert "it has to be a" in message or "it has to be true" in message
    assert message.startswith(str(folder)) and "\n" not in message


@AGAIN
@given(
    file=st.sampled_from(["config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json"]),
    field=st.integers(0, 40),
    value=VALUES,
)
def test_whatever_a_field_holds_the_model_opens_or_is_refused_in_one_line(
    tmp_path: Path, file: str, field: int, value: Any
) -> None:
    _open_or_refuse(tmp_path, file, field, value)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_null_in_any_field_is_no_exception(tmp_path: Path, file: str) -> None:
    path = EMBEDDED / file
    for field in range(len(json.loads(path.read_text())) if path.exists() else 2):
        _open_or_refuse(tmp_path, file, field, None)


def _open_or_refuse(tmp_path: Path, file: str, field: int, value: Any) -> None:
    folder = copy_model(EMBEDDED, tmp_path / "model")
    path = folder / file
    names = sorted(json.loads(path.read_text())) if path.exists() else ["word_delimiter_token", "pad_token"]
    change(folder, file, names[field % len(names)], value)
    try:
        checkpoint = open_checkpoint(str(folder))
        count_weights(checkpoint)
    except LoadError as error:
        assert str(error).startswith(str(folder)) and "\n" not in str(error)
    else:
        assert checkpoint.clock.frame > 0


@AGAIN
@given(
    file=st.sampled_from(["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"]),
    field=st.integers(0, 60),
    value=VALUES,
)
def test_the_same_holds_for_whisper(shared: Path, tmp_path: Path, file: str, field: int, value: Any) -> None:
    _open_or_refuse_whisper(shared, tmp_path, file, field, value)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_null_in_any_field_of_whisper_is_no_exception(shared: Path, tmp_path: Path, file: str) -> None:
    for field in range(len(json.loads((shared / "models" / "whisper-tiny.en" / file).read_text()))):
        _open_or_refuse_whisper(shared, tmp_path, file, field, None)


def _open_or_refuse_whisper(shared: Path, tmp_path: Path, file: str, field: int, value: Any) -> None:
    source = shared / "models" / "whisper-tiny.en"
    folder = tmp_path / "model"
    if not folder.exists():
        copy_model(source, folder)
    names = sorted(json.loads((source / file).read_text()))
    change(folder, file, names[field % len(names)], value)
    try:
        open_whisper(str(folder))
    except LoadError as error:
        assert str(error).startswith(str(folder)) and "\n" not in str(error)
    finally:
        (folder / file).unlink()
        shutil.copyfile(source / file, folder / file)


@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json", "processor_config.json"]
)
def test_what_is_nested_too_deeply_is_refused(folder: Path, file: str) -> None:
    (folder / file).write_text(NESTED)
    with pytest.raises(LoadError, match=rf"{file} is nested too deeply"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(LoadError, match=r"has no config\.json|is not a file"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("model_type", ["nougat", "gemma4_assistant", "no-such-type"])
def test_a_type_that_has_no_default_configuration_is_refused_with_the_folder(folder: Path, model_type: str) -> None:
    change(folder, "config.json", "model_type", model_type)
    with pytest.raises(LoadError) as caught:
        open_checkpoint(str(folder))
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "most"), [("config.json", "4 MB"), ("tokenizer_config.json", "4 MB"), ("vocab.json", "67 MB")]
)
def test_a_file_of_ten_gigabytes_is_refused_before_it_is_read(folder: Path, file: str, most: str) -> None:
    with (folder / file).open("r+b" if (folder / file).exists() else "wb") as stream:
        os.ftruncate(stream.fileno(), 10_000_000_000)  # takes no room on the disk
    with pytest.raises(LoadError, match=rf"{file} has 10,000 MB, and no such file has more than {most}"):
        open_checkpoint(str(folder))


def test_the_cases_that_were_found_are_refused_by_name(shared: Path, folder: Path) -> None:
    cases = shared / "cases/faults/model-json"
    shutil.copyfile(cases / "bad114-config.json", folder / "config.json")
    with pytest.raises(LoadError, match=r"config\.json: vocab_size is 1e\+308; it has to be a whole number"):
        open_checkpoint(str(folder))
    copy_model(EMBEDDED, folder)
    shutil.copyfile(cases / "bad28-preprocessor_config.json", folder / "preprocessor_config.json")
    with pytest.raises(LoadError, match=r"preprocessor_config\.json is nested too deeply"):
        open_checkpoint(str(folder))


def _list_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

    return sorted({config.model_type for config in MODEL_FOR_CTC_MAPPING} | {"whisper"})


@pytest.mark.parametrize("model_type", _list_types())
def test_what_transformers_itself_writes_is_never_refused(model_type: str) -> None:
    defaults = _find_defaults(model_type)
    assert find_wrong(json.loads(json.dumps(defaults)), make_rules(defaults)) == ""


def test_rules_follow_from_what_a_field_is_by_default() -> None:
    rules = make_rules({"hidden_size": 8, "dropout": 0.1, "conv_dim": [1, 2], "act": "gelu", "bias": True, "odd": None})
    good = {"hidden_size": 16, "dropout": 0, "conv_dim": [512], "act": "relu", "bias": False, "odd": object()}
    assert find_wrong(good, rules) == "" and find_wrong({}, rules) == ""
    bad: list[tuple[str, Any]] = [
        ("hidden_size", 16.0),
        ("hidden_size", 0),
        ("dropout", math.nan),
        ("dropout", "0"),
        ("dropout", 10**400),
        ("conv_dim", 512),
        ("conv_dim", [512, "x"]),
        ("conv_dim", [1] * 200_000),
        ("act", 1),
        ("bias", 1),
    ]
    for name, value in bad:
        assert find_wrong({**good, name: value}, rules).startswith(f"{name} is "), name


@given(st.integers(1, 100), st.dictionaries(st.text(max_size=3), st.integers(-5, 120) | st.booleans(), max_size=9))
def test_a_token_is_wrong_exactly_if_its_number_is_no_output(size: int, tokens: dict[str, Any]) -> None:
    sound = all(not isinstance(number, bool) and 0 <= number < size for number in tokens.values())
    assert (find_wrong_token(tokens.items(), size) == "") == sound


def test_a_value_is_shown_on_one_line_however_large_or_deep() -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    shown: list[Callable[[], Any]] = [lambda: deep, lambda: "x\n" * 999, lambda: 10**10_000]
    for make in shown:
        text = show(make())
        assert len(text) <= 64 and "\n" not in text
    assert set(EXTRACTOR["stride"].describe()) and not Rule(int, 1).allows(0)
