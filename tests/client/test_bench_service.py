"""`python -m benchmarks.service`: a short run of it, and what it makes of figures."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks import _compare, _figures
from benchmarks._chart import chart
from benchmarks._children import Ended, child
from benchmarks._rows import Row, by_key
from benchmarks._services import Service, Settings, Worker, services
from benchmarks.service import Candidate, check_samples
from benchmarks.triton import environment

from convolver.client.bench import WORKLOADS, Cell, Load, Round, Usage, Workload

if TYPE_CHECKING:
    from convolver.client.bench import Weights

REPOSITORY = Path(__file__).parent.parent.parent


def row(
    service: str, median: float, workload: str = "tiny", weights: Weights = "layers", *, spread: float = 0.0
) -> Row:
    """One caller's figures, with rounds that lie that far apart."""
    around = (median * (1 - spread / 2), median, median * (1 + spread / 2))
    rounds = [Round(Load(1.0, [one], {}), Usage(), Usage()) for one in around]
    return Row(service, weights, Cell.of(WORKLOADS[workload], [1], 1, rounds))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a quick run without those that need torch says, and its folder."""
    out = tmp_path_factory.mktemp("results")
    services = ("--service", "echo", "--service", "convolver")
    command = [sys.executable, "-m", "benchmarks.service", "--quick", *services, "--out", str(out)]
    ended = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return ended.stdout, out


def test_a_quick_run_measures_every_service_with_each_number_of_callers(run: tuple[str, Path]) -> None:
    told = json.loads((run[1] / "service.json").read_text())
    ours = {(one["service"], one["weights"], one["callers"]) for one in told["cells"] if "convolver" in one["service"]}
    assert ours == {
        (f"convolver, {way}", weights, callers)
        for way in ("TCP", "unix socket")
        for weights in ("layers", "inline")
        for callers in (1, 4)
    }
    assert [one["callers"] for one in told["cells"] if one["service"] == "bare echo"] == [1]
    assert all(one["requests"] and not one["errors"] and one["server_peak"] for one in told["cells"])


def test_a_run_says_what_was_asked_and_what_could_not_be_measured(run: tuple[str, Path]) -> None:
    figures = {one["name"]: one for one in json.loads((run[1] / "service.json").read_text())["figures"]}
    assert figures["tiny, over a bare echo of as many bytes"]["measured"] > 0
    assert figures["big, TCP, over local torch"]["reason"] == "convolver, TCP: not measured"
    assert "not available: convolver, TCP: not measured" in (run[1] / "service.md").read_text()
    assert "Asked and measured" in run[0]


class Fixed(Worker):
    """One whose service always gives that output."""

    def __init__(self, sample: list[float]) -> None:
        self._sample = sample

    def sample(self, *_: object) -> dict[str, Any]:
        return {"sample": self._sample, "errors": {}}


def test_a_service_whose_output_is_wrong_is_told_and_not_measured() -> None:
    workers = [Fixed(sample) for sample in ([1.0, 2.0], [1.0, 2.5], [])]
    made = [Candidate(Service("", worker, ("layers",)), "layers", []) for worker in workers]
    check_samples(made, WORKLOADS["tiny"])
    assert [one.wrong for one in made] == ["", "its output is wrong", ""]


@pytest.mark.parametrize(
    ("python", "reason"), [("/nowhere/python3", "there is no /nowhere/python3"), ("/bin/false", "exit status 1")]
)
def test_a_service_that_cannot_be_installed_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python: str, reason: str
) -> None:
    monkeypatch.setattr(environment, "PYTHON", Path(python))
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "pytriton")
    with ExitStack() as stack:
        found, missing = services(stack, Settings(1, "cpu"), tmp_path, ["pytriton", "echo"])
    assert [one.name for one in found] == ["bare echo"]
    assert reason in missing["pytriton"]


def test_a_process_that_does_not_start_says_how_it_ended() -> None:
    with (
        child(sys.executable, "-c", "import sys; print('one'); sys.exit('no room')") as process,
        pytest.raises(Ended, match=r"^ended with status 1: no room$"),
    ):
        process.ready()


def test_a_process_that_ends_in_the_middle_says_how() -> None:
    script = "input(); raise SystemExit('had enough')"
    with (
        child(sys.executable, "-c", script) as process,
        pytest.raises(Ended, match=r"^ended with status 1: had enough$"),
    ):
        process.asked("{}")


@pytest.mark.parametrize(
    ("ours", "echo", "measured", "reached"), [(0.0018, 0.001, 1.8, True), (0.002, 0.001, 2.0, False)]
)
def test_a_figure_is_reached_or_not(ours: float, echo: float, measured: float, reached: bool) -> None:  # noqa: FBT001  # pytest hands it over so
    rows = [row("convolver, TCP", ours), row("bare echo", echo, weights="inline")]
    figures = {one.name: one for one in _figures.ratios(by_key(rows), "cpu")}
    found = figures["tiny, over a bare echo of as many bytes"]
    assert found.measured == pytest.approx(measured)
    assert found.reached is reached


def test_a_figure_that_is_to_be_large_is_reached_from_there_on() -> None:
    rows = [row("convolver, TCP", 0.001), row("PyTriton", 0.005)]
    rows = [one._replace(cell=Cell.of(WORKLOADS["tiny"], [1], 1, [_round(one)])) for one in rows]
    found = next(one for one in _figures.ratios(by_key(rows), "cpu") if one.name.startswith("tiny, requests/s at 1 "))
    assert found.measured == pytest.approx(5.0)
    assert found.reached


def _round(one: Row) -> Round:
    median = one.cell.median or 0.0
    return Round(Load(10 * median, [median] * 10, {}), Usage(), Usage())


def test_errors_stand_in_place_of_figures() -> None:
    refused = Cell.of(WORKLOADS["big"], [1], 1, [Round(Load(1.0, [], {"Overloaded: full": 3}), Usage(), Usage())])
    rows = [Row("convolver, TCP", "layers", refused), row("local torch", 0.1, "big")]
    found = next(one for one in _figures.ratios(by_key(rows), "cpu") if one.name.startswith("big, TCP"))
    assert (found.measured, found.reason) == (None, "convolver, TCP: Overloaded: full")


def test_figures_of_a_gpu_are_told_to_need_one() -> None:
    rows = [row("convolver, shared memory", 0.1, "big"), row("local torch", 0.1, "big")]
    for device, measured in (("cpu", None), ("cuda", 1.0)):
        found = next(one for one in _figures.ratios(by_key(rows), device) if one.name.startswith("GPU: big"))
        assert found.measured == measured


def test_a_slower_machine_is_no_regression() -> None:
    before = [row("local torch", 0.001), row("convolver, TCP", 0.002)]
    now = [row("local torch", 0.002), row("convolver, TCP", 0.004)]
    (found,) = _compare.compared(now, before)
    assert found.ratio == pytest.approx(1.0)
    assert not found.is_regression


@pytest.mark.parametrize(("spread", "regression"), [(0.0, True), (0.5, False)])
def test_slower_than_noise_is_a_regression(spread: float, regression: bool) -> None:  # noqa: FBT001  # likewise
    before = [row("local torch", 0.001), row("convolver, TCP", 0.002)]
    now = [row("local torch", 0.001), row("convolver, TCP", 0.0028, spread=spread)]
    (found,) = _compare.compared(now, before)
    assert found.ratio == pytest.approx(1.4)
    assert found.is_regression is regression


def test_the_worst_comparison_comes_first_and_new_cells_have_none() -> None:
    before = [row("convolver, TCP", 0.001), row("convolver, TCP", 0.001, "stem")]
    now = [row("convolver, TCP", 0.001), row("convolver, TCP", 0.003, "stem"), row("convolver, TCP", 1.0, "big")]
    assert [one.key[2] for one in _compare.compared(now, before)] == ["stem", "tiny"]


def test_rows_survive_json() -> None:
    one = row("convolver, TCP", 0.001)
    assert Row.from_json(json.loads(json.dumps(one.told()))) == one


def test_the_chart_has_a_bar_for_each_ratio_on_its_side_of_1() -> None:
    drawn = ET.fromstring(chart("a < b", {"tiny": {"ours": 0.5, "theirs": 4.0}, "big": {"ours": 1.0}}))  # noqa: S314  # our own
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b" in texts
    assert {"0.50", "4.00", "1.00"} <= set(texts)
    bars = [one for one in drawn.iter("{http://www.w3.org/2000/svg}rect") if one.get("height") == "8"]
    faster, slower, same = ((float(bar.get("x", 0)), float(bar.get("width", 0))) for bar in bars)
    assert faster[0] + faster[1] == pytest.approx(slower[0], abs=0.2)
    assert slower[1] > faster[1]
    assert same == (slower[0], 1.0)


def test_the_largest_request_is_2_gib_in_all() -> None:
    assert isinstance(_figures.GIB, Workload)
    assert _figures.GIB.bytes == 2 << 30
