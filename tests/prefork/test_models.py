"""A model computes in a worker what it computes where it was made, whoever made it, and how."""

from __future__ import annotations

import pytest

from prefork import Runtime

pytestmark = pytest.mark.usefixtures("script_engine")


@pytest.mark.parametrize("kind", ["inference mode", "export"])
@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_a_model_computes_the_same_in_a_worker(kind: str, strategy: str) -> None:
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
