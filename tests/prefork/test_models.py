"""A model computes in a worker what it computes where it was made, whoever made it, and how."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from prefork import Runtime, WorkerDied
from tests.conftest import SCRIPT_ENGINE

pytestmark = [
    pytest.mark.usefixtures("script_engine"),
    pytest.mark.filterwarnings("ignore"),  # what packages say of each other, as the models are made here
]
torch.set_num_threads(1)  # as in the workers: on more, sums have another order


def _import_kinds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT_ENGINE))
        import script_kinds

        script_kinds.list_kinds()  # imports others beside it
    return script_kinds


kinds = _import_kinds()
KINDS = kinds.KINDS
PRIVATE = ("*.in training.*.running_*", "*.in training.*.num_batches_tracked", "*.past.*", "*.trained.*")


def _skip_without(name: str) -> None:
    if KINDS[name].needs is not None:
        pytest.importorskip(KINDS[name].needs, reason="a package that is in no extra, for its size")


def _list_together() -> list[str]:
    there = [name for name, kind in KINDS.items() if kind.needs is None or importlib.util.find_spec(kind.needs)]
    return [name for name in there if not KINDS[name].alone]


def _compute_here(name: str) -> Any:
    return kinds.compute({name: kinds.make(name)}, name)


@pytest.fixture(scope="module", params=["fork", "spawn"])
def together(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """For all models that may be in one process: to load the packages takes longer than all that they compute."""
    with pytest.MonkeyPatch.context() as patch:
        known = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", f"{SCRIPT_ENGINE}{os.pathsep}{known}" if known else str(SCRIPT_ENGINE))
        patch.syspath_prepend(str(SCRIPT_ENGINE))
        load = partial(kinds.load, _list_together())
        with Runtime(load=load, private=PRIVATE, workers=1, threads=1, strategy=request.param) as runtime:
            runtime.submit(kinds.compute, "BERT").result()  # all processes are there before the first test begins
            yield runtime


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.alone])
def test_a_model_computes_the_same_in_a_worker(together: Runtime, name: str) -> None:
    """Bit by bit: on one thread, and at addresses that are aligned alike, torch has no reason for anything else."""
    _skip_without(name)
    assert together.submit(kinds.compute, name).result() == _compute_here(name)


@pytest.fixture(scope="module")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch compiles is not what it has compiled in an earlier run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("torch.compile")])
def test_a_compiled_model_computes_the_same_whether_it_was_compiled_before_the_fork_or_after(name: str) -> None:
    load = partial(kinds.load, [name])
    with Runtime(load=load, workers=1, threads=1, strategy="fork") as runtime:
        found = runtime.submit(kinds.compute, name).result()
    assert found == _compute_here(name)


@pytest.mark.parametrize("name", ["onnxruntime", "threads of its own"])
def test_a_model_with_threads_is_not_forked_and_the_same_in_spawned_workers(name: str) -> None:
    _skip_without(name)
    load, notices = partial(kinds.load, [name]), list[str]()
    with Runtime(load=load, workers=1, threads=1, notice=notices.append) as runtime:
        assert runtime.submit(kinds.compute, name).result() == _compute_here(name)
    assert len(notices) == 1
    assert re.match(r"cannot fork: .* thread.*; end it .*; the workers are spawned instead", notices[0])


WRITES = {
    "BatchNorm in training": r"BatchNorm in training\.0\.in training\.2\.(running_\w+|num_batches_tracked)",
    "a step of training": r"a step of training\.0\.trained\.0\.\d\.(weight|bias)",
    "Llama, static cache of the model": r"Llama, .*\.0\.past\.layers\.\d\.(keys|values|cumulative_length)",
}


def test_models_that_write_to_themselves_die_by_name_with_the_remedy() -> None:
    """The remedy is what the same models have in the test of all of them."""
    load = partial(kinds.load, list(WRITES))
    with Runtime(load=load, workers=1, threads=1, strategy="fork", notice=lambda _: None) as runtime:
        errors = {name: runtime.submit(kinds.compute, name).exception() for name in WRITES}
    for name, pattern in WRITES.items():
        assert f"{name}, private" in KINDS and isinstance(errors[name], WorkerDied)
        text = rf"wrote to shared weights \(({pattern})\), .* Runtime\(\.\.\., private=\('\1',\)\)"
        assert re.search(text, str(errors[name]))


@pytest.mark.parametrize("kind", ["inference mode", "export"])
@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_a_model_that_was_made_otherwise_computes_the_same_in_a_worker(kind: str, strategy: str) -> None:
    import script_models

    load = script_models.LOADS[kind]
    expected = [script_models.compute(load(), value) for value in (0.5, 2.0)]
    with Runtime(load=load, workers=1, threads=1, strategy=strategy, notice=lambda _: None) as runtime:
        assert list(runtime.map(script_models.compute, (0.5, 2.0))) == [
            pytest.approx(one, rel=1e-6) for one in expected
        ]


def test_workers_that_read_one_open_file_do_not_meet() -> None:
    """A descriptor that is inherited has one position for all."""
    import script_models

    with Runtime(load=script_models.load_reader, workers=2, strategy="fork", notice=lambda _: None) as runtime:
        found = list(runtime.map(script_models.read_often, range(12)))
    lines = script_models.load_reader().file.read().splitlines(keepends=True)
    assert [read for _, read in found] == [{lines[number]} for number in range(12)]
    assert len({pid for pid, _ in found}) == 2
