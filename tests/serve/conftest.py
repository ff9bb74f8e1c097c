"""One small release and its functions, shared by the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.releases import Made
from tests.serve.functions import Fleet, Function


@pytest.fixture(scope="session", autouse=True)
def no_function_is_left() -> Iterator[None]:
    """Whatever a failed test left running ends with the tests."""
    yield
    for function in Function.started:
        if function.process.poll() is None:
            function.process.kill()
        function.process.wait()


@pytest.fixture(scope="session")
def fleet(packed_release: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Sparse functions and a gateway. Do not stop them."""
    with Fleet(packed_release, tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture(scope="session")
def fleet_with_dense(
    packed_release: Made, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """The same, with the tower as a function of its own."""
    with Fleet(packed_release, tmp_path_factory.mktemp("fleet"), dense=True) as running:
        yield running
