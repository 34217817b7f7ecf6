"""stanza's models on real sentences: which words are kept, which are cut, and what is said of all else."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rustling.chat import CHAT
from stanza.resources import common

from prefork.engines.base import InputError, Job, LoadError, Output
from prefork.engines.stanza.models import EMBEDDED, MissingModel, StanzaPackage
from prefork.engines.stanza.tagger import LONGEST, StanzaTagger
from prefork.engines.text import formats
from prefork.engines.text.document import Document, TokenKind
from prefork.engines.text.formats import chat
from prefork.engines.text.mor import check_tree
from prefork.fingerprint import complete, note_files
from tests.engines.stanza_packages import write_charlm_package
from tests.prefork.command import run

pytestmark = pytest.mark.dependencies

HEAD = "@UTF8\n@Begin\n@Languages:\t{}\n@Participants:\tCHI Target_Child\n@ID:\teng|x|CHI|||||Target_Child|||\n"
JOB = Job("a.cha", Path("a.cha"))
LINES = (
    "I'm going to the store .",
    "he didn't eat the cookie , did he ?",
    "the dog's bone is in mommy's car !",
    "okay .",
    "I cannot see it +...",
    "where is the big red ball that we bought yesterday ?",
    "(be)cause &-um the the [/] boy [* s] fell down .",
)


def make(*lines: str, languages: str = "eng") -> Document:
    mains = "".join(line + "\n" if line.startswith("%") else f"*CHI:\t{line}\n" for line in lines)
    return chat.parse(f"{HEAD.format(languages)}{mains}@End\n", "a.cha")


@functools.cache
def load() -> Any:
    torch.set_num_threads(1)
    tagger = StanzaTagger()
    tagger.setup()
    model = tagger.load()
    with torch.inference_mode():
        tagger.verify(tagger.infer(model, [tagger.example()])[0])
    return model


def open_tagger(**options: Any) -> StanzaTagger:
    tagger = StanzaTagger(**options)
    tagger.setup()
    return tagger


def analyse(document: Document, job: Job = JOB, together: bool = True, **options: Any) -> Document:
    tagger = open_tagger(**options)
    segments = tagger.split(job, document)
    prepared = [tagger.prepare(job, segment) for segment in segments]
    with torch.inference_mode():
        if together:
            outputs = tagger.infer(load(), prepared)
        else:
            outputs = [tagger.infer(load(), [tensors])[0] for tensors in prepared]
    pieces = [tagger.finish(job, segment, output) for segment, output in zip(segments, outputs, strict=True)]
    return tagger.join(job, document, segments, pieces)


def get_tier(text: str, name: str) -> list[str]:
    return [line.partition("\t")[2] for line in text.splitlines() if line.startswith(f"%{name}:")]


def test_words_of_a_transcript_are_kept_and_told_apart() -> None:
    document = analyse(make(*LINES))
    first = document.utterances[0].tokens
    assert [token.text for token in first] == ["I'm", "going", "to", "the", "store", "."]
    assert [[word.form for word in token.words] for token in first[:2]] == [["I", "'m"], ["going"]]
    assert [word.upos for word in first[0].words] == ["PRON", "AUX"]
    assert [word.lemma for token in first for word in token.words][1:3] == ["be", "go"]
    assert [[w.form for w in t.words] for t in document.utterances[4].tokens[:2]] == [["I"], ["can", "not"]]
    for utterance in document.utterances:
        check_tree([word for token in utterance.tokens for word in token.words])


def test_what_chat_marks_as_not_counting_is_not_analysed() -> None:
    last = analyse(make(*LINES)).utterances[-1]
    assert [token.text for token in last.tokens] == ["because", "the", "boy", "fell", "down", "."]
    assert all(token.words for token in last.tokens)


def test_rendering_changes_neither_tree_nor_tags(shared: Path) -> None:
    document = Document(formats.read(shared / "data" / "ud-english-ewt" / "en_ewt-ud-test.conllu").utterances[:300:3])
    made = analyse(chat.parse(formats.render(replace(document, languages=("eng",), media="a"), "chat"), "a.cha"))
    read = CHAT.from_strs([formats.render(made, "chat")], strict=True).utterances()
    pairs = [(u, r) for u, r in zip(made.utterances, read, strict=True) if any(t.words for t in u.tokens)]
    assert len(pairs) > 90
    for utterance, found in pairs:
        words = [word for token in utterance.tokens for word in token.words]
        relations = [token.gra for token in found.tokens or () if token.gra]
        wanted = [(i, w.head, w.deprel.upper().replace(":", "-")) for i, w in enumerate(words, start=1)]
        assert [(gra.dep, gra.head, gra.rel) for gra in relations] == wanted


@pytest.mark.slow
def test_an_utterance_does_not_depend_on_its_company(shared: Path) -> None:
    source = formats.read(shared / "data" / "ud-english-ewt" / "en_ewt-ud-test.conllu")
    document = replace(source, utterances=tuple(source.utterances[:120:3]))
    alone = analyse(document, together=False, segment_words=0)
    assert analyse(document) == alone
    turned = replace(document, utterances=document.utterances[::-1])
    assert analyse(turned).utterances[::-1] == alone.utterances


def test_plain_text_is_tokenised() -> None:
    document = formats.FORMATS["text"].parse("I don't know, she said.\n\nReally?\n", "a.txt")  # type: ignore[misc]
    first, second = analyse(document).utterances
    assert [token.text for token in first.tokens] == ["I", "don't", "know", ",", "she", "said", "."]
    kinds = [token.kind for token in first.tokens]
    assert (kinds[3], kinds[-1]) == (TokenKind.SEPARATOR, TokenKind.TERMINATOR)
    assert [word.form for word in first.tokens[1].words] == ["do", "n't"]
    assert [token.text for token in second.tokens] == ["Really", "?"]


def test_words_are_cut_anew_only_if_that_is_wanted() -> None:
    source = make("he said no-one's here .", "a@l no-one's@c .")
    kept = formats.render(analyse(source), "chat")
    assert "*CHI:\the said no-one's here .\n%mor:" in kept
    cut = formats.render(analyse(source, retokenize=True), "chat")
    CHAT.from_strs([cut], strict=True)
    assert "*CHI:\ta@l no-one's@c .\n%mor:" in cut


def test_utterances_in_a_language_without_a_model_are_left(tmp_path: Path) -> None:
    document = analyse(make("I see [= text] .", "[- spa] quiero agua .", languages="eng, spa"))
    (warning,) = document.warnings
    assert "1 utterance in 'spa' not analysed" in warning
    lines = formats.render(document, "chat").splitlines()
    assert lines[lines.index("*CHI:\t[- spa] quiero agua .") + 1] == "@End"
    assert len(get_tier(formats.render(document, "chat"), "mor")) == 1


def test_marked_words_are_not_told_apart() -> None:
    (utterance,) = analyse(make("gimme@q it's@s:spa and it's .", languages="eng, spa")).utterances
    assert [len(token.words) for token in utterance.tokens] == [1, 1, 1, 2, 1]


def test_a_file_is_done_if_some_of_it_can_be() -> None:
    document = analyse(
        make("quiero agua .", "[- eng] I want it .", languages="spa, eng"),
        languages=("spa", "eng"),
        model_dir=str(EMBEDDED["eng"]),
    )
    assert [bool(utterance.tokens[0].words) for utterance in document.utterances] == [False, True]
    assert "1 utterance in 'spa' not analysed: there is no model for language 'spa'" in document.warnings[0]


def test_a_file_in_a_language_without_a_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.cha: no model for language 'spa' was loaded"):
        analyse(make("quiero agua .", languages="spa"))


def test_long_utterances_are_analysed_and_too_long_ones_refused() -> None:
    (utterance,) = analyse(make(" ".join(["the old dog sleeps and"] * 40) + " dreams .")).utterances
    words = [word for token in utterance.tokens for word in token.words]
    assert len(words) == 202
    check_tree(words)
    document = analyse(make("okay .", f"{'no ' * (LONGEST + 1)}."))
    assert [bool(utterance.tokens[0].words) for utterance in document.utterances] == [True, False]
    assert document.warnings == ("utterance 2 has more than 1000 words and is not analysed; split it up",)


def test_utterances_without_words_get_no_tiers_and_keep_those_they_have() -> None:
    text = formats.render(analyse(make("0 .", "xxx .", "&=laughs .", "%mor:\tco|okay .", "okay .")), "chat")
    assert get_tier(text, "mor") == ["co|okay .", "intj|okay ."]
    assert "*CHI:\t&=laughs .\n%mor:\tco|okay .\n" in text


@pytest.mark.parametrize("line", ["שלום עולם .", "مرحبا بالعالم !", "我 要 饼干 .", "eñe ﬁn e\u0301 .", "👍 okay ."])
def test_any_script_gets_an_analysis(line: str) -> None:
    text = formats.render(analyse(make(line)), "chat")
    CHAT.from_strs([text], strict=True)
    assert len(get_tier(text, "mor")) == len(get_tier(text, "gra")) == 1


def test_words_longer_than_models_are_shown_are_not_changed() -> None:
    address = "https://example.com/" + "a" * 1000
    document = analyse(formats.FORMATS["text"].parse(f"see {address} now .\n", "a.txt"))  # type: ignore[misc]
    token = document.utterances[0].tokens[1]
    assert [token.text, token.words[0].form, token.words[0].lemma] == [address] * 3
    (tier,) = get_tier(formats.render(analyse(make(f"see {'ab' * 300} now .")), "chat"), "mor")
    assert f"|{'ab' * 300}" in tier


def test_tiers_that_are_there_are_kept_or_replaced() -> None:
    document = make("okay .", "%mor:\tco|okay .", "%gra:\t1|0|ROOT 2|1|PUNCT", "hello .")
    assert get_tier(formats.render(analyse(document), "chat"), "mor") == ["intj|okay .", "intj|hello ."]
    assert get_tier(formats.render(analyse(document, keep=True), "chat"), "mor") == ["co|okay .", "intj|hello ."]


def test_lines_whose_words_readers_count_differently_are_named() -> None:
    job = replace(JOB, outputs=(Output("chat", Path("a.cha")),))
    (warning,) = analyse(make("okay .", "I see °xxx° it ."), job).warnings
    assert "no new %mor for 1 utterance (2)" in warning
    old = make("I see °xxx° it .", "%mor:\tpro|I v|see pro|it .")
    assert [len(get_tier(formats.render(analyse(old, keep=keep), "chat"), "mor")) for keep in (False, True)] == [1, 1]


# models


def copy_models(folder: Path) -> Path:
    shutil.copytree(EMBEDDED["eng"], folder)
    return folder


def test_models_can_lie_in_any_folder(tmp_path: Path) -> None:
    folder = copy_models(tmp_path / "models")
    tagger = open_tagger(model_dir=str(folder))
    assert tagger.count_weights() == sum(file.stat().st_size for file in folder.rglob("*.pt"))
    prints = [complete("stanza", note_files(one.fingerprint())) for one in (tagger, open_tagger())]
    assert prints[0]["models"] == prints[1]["models"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such folder; check --model-dir"),
        (lambda folder: (folder / "resources.json").unlink(), "has no resources.json"),
        (lambda folder: (folder / "resources.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "resources.json").write_text('{"de": {"packages": {}}}'), "only for deu"),
        (lambda folder: shutil.rmtree(folder / "en" / "pos"), "are incomplete: en lacks pos/"),
        (lambda folder: shutil.rmtree(folder / "en" / "pretrain"), "are incomplete: en lacks pretrain/"),
    ],
)
def test_models_that_are_not_there_are_named(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = copy_models(tmp_path / "models")
    spoil(folder)
    with pytest.raises(LoadError, match=message) as caught:
        open_tagger(model_dir=str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "[" * 100_000,
        "{}",
        '{"en": 3}',
        '{"en": {"alias": "en"}}',
        '{"en": {"alias": "de"}, "de": {"alias": "en"}}',
        '{"en": {"alias": ["en"]}}',
        '{"en": {"packages": null}}',
        '{"en": {"packages": {"default": 7}}}',
        '{"en": {"packages": {"default": {"tokenize": ["x"]}}}}',
        '{"en": {"packages": {"default": {"tokenize": 5, "pos": "x", "depparse": "x"}}}}',
        '{"en": {"packages": {"default": {"tokenize": "x"}}, "tokenize": {"x": {"dependencies": 5}}}}',
    ],
)
def test_whatever_the_index_of_the_models_holds_is_refused_in_one_line(tmp_path: Path, index: str) -> None:
    folder = copy_models(tmp_path / "models")
    (folder / "resources.json").write_text(index)
    with pytest.raises(LoadError, match=re.escape(str(folder))) as caught:
        open_tagger(model_dir=str(folder))
    assert "\n" not in str(caught.value)


def test_models_that_are_damaged_are_named(tmp_path: Path) -> None:
    folder = copy_models(tmp_path / "models")
    (file,) = (folder / "en" / "pos").glob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LoadError, match="cannot be loaded"):
        open_tagger(model_dir=str(folder)).load()


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    folder = copy_models(tmp_path / "models")
    (file,) = (folder / "en" / "pos").glob("*.pt")
    torch.save({"model": Harmful(str(tmp_path / "harm"))}, file)
    with pytest.raises(LoadError, match="cannot be loaded") as caught:
        open_tagger(model_dir=str(folder)).load()
    assert "weights_only" not in str(caught.value)  # no advice to trust it
    assert not (tmp_path / "harm").exists()


class Harmful:
    """What unpickling it would do is to make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.slow
def test_what_several_models_use_is_there_once_and_works_read_only(tmp_path: Path) -> None:
    write_charlm_package(tmp_path / "models")
    model = open_tagger(model_dir=str(tmp_path / "models")).load()
    tagger, parser = (model.by_language["eng"].processors[name].trainer.model for name in ("pos", "depparse"))
    assert tagger.charmodel_forward is parser.charmodel_forward
    assert tagger.charmodel_backward is parser.charmodel_backward
    assert tagger.pretrained_emb.weight.data_ptr() == parser.pretrained_emb.weight.data_ptr()
    (tmp_path / "a.txt").write_text("I want a cookie.\n")
    done = run("morphotag", tmp_path / "a.txt", tmp_path / "out", "--model-dir", tmp_path / "models")
    assert done.returncode == 0, done.stdout + done.stderr  # a write to a weight would have killed the worker
    assert len((tmp_path / "out" / "a.conllu").read_text().splitlines()) == 8


def test_a_package_that_stanza_does_not_have_is_named() -> None:
    with pytest.raises(LoadError, match="stanza's package 'huge' for en"):
        open_tagger(package="huge", model_dir=str(EMBEDDED["eng"]))


class Hub(http.server.SimpleHTTPRequestHandler):
    """stanza's index and models, as its downloader asks for them."""

    asked: Sequence[str] = ()

    def log_message(self, *_: Any) -> None:
        type(self).asked = [*self.asked, self.path]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "hub"
    copy_models(root)
    handler = functools.partial(Hub, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        index = json.loads((root / "resources.json").read_text())
        index["url"] = address + "/{lang}/{filename}"
        for file in (root / "en").rglob("*.pt"):
            index["en"][file.parent.name][file.stem]["md5"] = hashlib.md5(file.read_bytes()).hexdigest()
        (root / f"resources_{common.DEFAULT_RESOURCES_VERSION}.json").write_text(json.dumps(index))
        yield address
        server.shutdown()
        thread.join()


FETCH = """
import sys
from prefork.engines.stanza.models import MissingModel, StanzaPackage
try:
    package = StanzaPackage.find("eng", sys.argv[1])
    print(len(package.files), package.folder)
except MissingModel as error:
    print("missing:", error)
"""


def fetch(name: str, folder: Path, **environment: str) -> str:
    """stanza reads its settings when it is imported, so this takes a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name],
        env={**os.environ, "STANZA_RESOURCES_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_models_are_fetched_by_stanza_itself(tmp_path: Path, hub: str) -> None:
    folder = tmp_path / "stanza"
    assert fetch("default", folder, STANZA_RESOURCES_URL=hub) == f"6 {folder}"
    for file in EMBEDDED["eng"].rglob("*.pt"):
        assert (folder / file.relative_to(EMBEDDED["eng"])).read_bytes() == file.read_bytes()
    assert fetch("default", folder, STANZA_RESOURCES_URL="http://127.0.0.1:9") == f"6 {folder}"  # nobody is asked again


@pytest.mark.slow
def test_models_that_cannot_be_fetched_are_explained(tmp_path: Path) -> None:
    said = fetch("default", tmp_path / "stanza", STANZA_RESOURCES_URL="http://127.0.0.1:9")
    assert said.startswith("missing: stanza's models are not in") and "give a --model-dir" in said
    assert "those for 'eng' cannot be downloaded (127.0.0.1 cannot be reached)" in said
    said = fetch("default", tmp_path / "stanza", HF_HUB_OFFLINE="1")
    assert "has no resources.json" in said


@pytest.mark.parametrize("language", ["English", "", "e"])
def test_what_is_no_code_of_a_language_is_refused(language: str) -> None:
    with pytest.raises(LoadError, match="such as eng, not"):
        StanzaTagger(language=language)


def test_languages_without_a_model_are_told_apart() -> None:
    with pytest.raises(MissingModel, match=r"there is no model for language 'deu' in .*, only for eng"):
        StanzaPackage.find("deu", folder=EMBEDDED["eng"])
