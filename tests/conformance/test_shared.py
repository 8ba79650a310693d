"""The shared conformance cases (other people's suites), through the service, where they lie beside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.conformance import shared_case
from tests.conformance.refusals import assert_refused
from tests.conformance.served import Served
from tests.conftest import RunningServer

from convolver.client import Client
from convolver.core.errors import InvalidConvolution

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "conformance"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="../shared/conformance is not here: its cases were NOT run")

UNSUPPORTED = {
    "astropy-nan: nan_convolve",
    "jax-lax: 0 spatial dimensions",
    "onnx-node: causal_conv_state",
    "onnx-node: conv_integer",
    "onnx-node: deform_conv",
}
"""What the cases' README leaves for later."""


class Replay(NamedTuple):
    """What the runner found: counts by suite, failures (also what should fail and did not), what is unsupported."""

    counts: dict[str, dict[str, int]]
    failures: list[tuple[str, str]]
    unsupported: dict[str, int]


@pytest.fixture(scope="session")
def modules() -> Iterator[Callable[[str], Any]]:
    """Imports of the cases' own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CASES))
        yield import_module


@pytest.fixture(scope="session")
def replayed(client: Client, modules: Callable[[str], Any]) -> Callable[[str], Replay]:
    """All cases on a back end, run once."""

    @cache
    def replay(backend: str) -> Replay:
        served = Served.by(client, backend)
        functions = (partial(function, served) for function in (shared_case.convolved, shared_case.differentiated))
        return Replay(*modules("replay").run(*functions))

    return replay


def must_fail(convcases: Any) -> Iterator[Any]:  # noqa: ANN401 - a module that lies elsewhere
    """The cases that every library refuses; `*_limitation` marks what one library refuses for its own reasons."""
    for case in convcases.load():
        own = any(tag.endswith("_limitation") for tag in case.tags)
        if case.must_fail and not own and case.op in ("conv", "conv_transpose"):
            yield case


def test_no_case_fails_and_nothing_that_must_fail_is_let_through(
    replayed: Callable[[str], Replay], backend: str
) -> None:
    assert replayed(backend).failures == []


def test_nothing_is_unsupported_but_what_is_for_later(replayed: Callable[[str], Replay], backend: str) -> None:
    assert set(replayed(backend).unsupported) == UNSUPPORTED


def test_the_cases_are_all_there(replayed: Callable[[str], Replay], backend: str) -> None:
    assert sum(counts["cases"] for counts in replayed(backend).counts.values()) >= 1698


def test_all_gradients_are_right(replayed: Callable[[str], Replay], backend: str) -> None:
    counts = replayed(backend).counts.values()
    assert sum(each["grad_pass"] for each in counts) >= 300
    assert not any(each["grad_fail"] or each["grad_unsupported"] for each in counts)


def test_what_must_fail_is_refused_by_the_sdk_and_not_by_the_adapter(
    modules: Callable[[str], Any], served: Served
) -> None:
    for case in must_fail(modules("convcases")):
        with pytest.raises(InvalidConvolution):
            shared_case.called(served, case, shared_case.requested(case))


def test_what_must_fail_is_refused_by_the_server_in_the_words_of_the_sdk(
    modules: Callable[[str], Any], served: Served
) -> None:
    count = 0
    for case in must_fail(modules("convcases")):
        x, w, b, parameters, _ = shared_case.requested(case)
        if w.ndim == case.ndim + 2:  # of others only conv1d to conv3d know that they are wrong
            assert_refused(served, x, w, b, parameters)
            count += 1
    assert count >= 120


def test_the_command_of_the_cases_readme_runs_the_adapter(server: RunningServer, backend: str) -> None:
    command = [sys.executable, str(CASES / "replay.py"), "--conv", "tests.conformance.shared_case:conv"]
    where = {"CONVOLVER_ADDRESS": server.address, "CONFORMANCE_BACKEND": backend}
    found = subprocess.run(
        [*command, "--suite", "onnx-pytorch"],
        cwd=ROOT,
        env=os.environ | where,
        capture_output=True,
        text=True,
        check=True,
    )
    assert " 15           15            0 " in found.stdout
