from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from tests.server.settings_loading import forget_variables, refusing

from convolver.server.settings import Bytes, Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_variables(monkeypatch)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    return refusing(capsys)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64MiB", 2**26),
        ("64 MiB", 2**26),
        ("1KB", 1000),
        ("1.5KiB", 1536),
        ("1gib", 2**30),
        ("512B", 512),
        ("512", 512),
    ],
)
def test_bytes_are_written_with_a_unit_or_without(text: str, number: int) -> None:
    assert load(["--max-message", text]).max_message == number


@pytest.mark.parametrize("text", ["12,000", "64QiB", "-5", "64MiB/s", "", "0", "1e6", "2GiB"])
def test_what_is_no_size_of_a_message_is_refused(text: str, refused: Callable[..., str]) -> None:
    assert re.match(f"convolver-server: --max-message: '{re.escape(text)}': .+\n$", refused(f"--max-message={text}"))


def test_bytes_are_shown_in_the_largest_unit_that_divides_them() -> None:
    assert [str(Bytes(number)) for number in (2**26, 1000, 3 * 2**30, 2**62)] == ["64MiB", "1000B", "3GiB", "4EiB"]


def test_counts_take_an_exponent() -> None:
    assert load(["--max-work", "1e13"]).max_work == 10**13


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--max-work", text) for text in ("0", "-1", "1.5", "1.5e0", "1e99", "1e999999999", "nan", "many")]
    + [("--grace", text) for text in ("-1", "inf", "nan", "soon")]
    + [("--threads", text) for text in ("-1", "1025", "half")]
    + [("--workers", text) for text in ("0", "257", "1.5", "many")]
    + [("--max-batch", text) for text in ("0", "-1", "2.5")]
    + [("--max-delay", text) for text in ("-1", "inf", "nan")]
    + [("--queue-seconds", text) for text in ("0", "-1", "inf", "nan")]
    + [("--max-connection-age", text) for text in ("-1", "inf", "nan", "3e6", "old")]
    + [("--max-connection-age-grace", text) for text in ("-1", "inf", "nan", "3e6", "none")],
)
def test_what_is_no_count_and_no_time_is_refused(flag: str, text: str, refused: Callable[..., str]) -> None:
    assert f"convolver-server: {flag}: " in refused(f"{flag}={text}")


@pytest.mark.parametrize(("written", "limit"), [("268435456\n", 2**28), ("max\n", 2**63)])
def test_the_memory_budget_is_half_of_the_container_or_the_machine(
    written: str, limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(written)
    monkeypatch.setattr("convolver.server.setting_types._CGROUP_LIMITS", (tmp_path / "absent", file))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert load([]).memory_budget == min(limit, machine) // 2 // 2**20 * 2**20


def test_log_levels_are_read_in_either_case() -> None:
    assert load(["--log-level", "WARNING"]).log_level == "warning"


@pytest.mark.parametrize("text", ["", "none", "0", "0.0"])
def test_connections_may_live_for_ever(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load(["--max-connection-age", text]).max_connection_age is None
    monkeypatch.setenv("CONVOLVER_MAX_CONNECTION_AGE", text)
    assert load([]).max_connection_age is None
    monkeypatch.delenv("CONVOLVER_MAX_CONNECTION_AGE")
    file = tmp_path / "server.toml"
    file.write_text(f'max_connection_age = "{text}"')
    assert load(["--config", str(file)]).max_connection_age is None


def test_an_age_of_connections_is_in_seconds() -> None:
    assert load(["--max-connection-age", "1.5"]).max_connection_age == 1.5


@pytest.mark.parametrize(("workers", "threads"), [(1, 6), (2, 3), (4, 1), (6, 1), (7, 1)])
def test_workers_share_the_cores_and_each_has_one(workers: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolver.server.setting_types.cores", lambda: 6)
    assert load([f"--workers={workers}"]).threads == threads


def test_threads_that_are_given_are_each_workers() -> None:
    assert load(["--workers=3", "--threads=5"]).threads == 5


def test_each_worker_has_its_part_of_every_budget_and_serves_no_http() -> None:
    flags = ("--memory-budget=6GiB", "--layer-budget=3GiB", "--shared-memory-budget=9GiB")
    settings = load(["--workers=3", *flags])
    one = settings.of_one_worker
    assert (one.memory_budget, one.layer_budget, one.shared_memory_budget) == (2 * 2**30, 2**30, 3 * 2**30)
    assert (one.max_request_bytes, one.http_listen) == (2 * 2**30, None)
    changed = {"memory_budget", "layer_budget", "shared_memory_budget", "http_listen", "exit_on_eof"}
    kept = set(Settings.model_fields) - changed
    assert one.model_dump(include=kept) == settings.model_dump(include=kept)


def test_a_budget_smaller_than_the_number_of_workers_leaves_each_a_byte() -> None:
    assert load(["--workers=5", "--layer-budget=3"]).of_one_worker.layer_budget == 1


def test_a_request_larger_than_a_workers_memory_is_refused(refused: Callable[..., str]) -> None:
    assert load(["--workers=2", "--memory-budget=2GiB", "--max-request-bytes=1GiB"]).max_request_bytes == 2**30
    assert refused("--workers=2", "--memory-budget=2GiB", "--max-request-bytes=1025MiB") == (
        "convolver-server: --max-request-bytes: '1025MiB': a request of 1025MiB could never fit a memory_budget of "
        "2GiB, shared by 2 workers\n"
    )


def test_a_unix_address_has_one_process(refused: Callable[..., str]) -> None:
    assert load(["--workers=1", "--listen=unix:/run/x"]).workers == 1
    assert refused("--workers=2", "--listen=127.0.0.1:1", "--listen=unix:/run/x") == (
        "convolver-server: --workers: '2': unix:/run/x can have but one process: the last that listens there silently "
        "takes the path\n"
    )
