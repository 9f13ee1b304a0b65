"""Fixtures of the engine's tests: a tiny model, and a factory of engines on it."""

from collections.abc import Iterator

import pytest
from engine_run import MakeEngine, engine_maker, tiny_decoder

from hybridmoe.model.decoder import Decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    with tiny_decoder(tmp_path_factory.mktemp("engine")) as model:
        yield model


@pytest.fixture
def make(model: Decoder) -> Iterator[MakeEngine]:
    with engine_maker(model) as make:
        yield make
