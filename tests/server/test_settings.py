from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError
from tests.server.settings_loading import forget_variables, refusing

from convolver.server.settings import Settings, as_toml, load

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_variables(monkeypatch)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    return refusing(capsys)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a TOML file, returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "server.toml"
        path.write_text(text)
        return str(path)

    return write


def test_without_any_setting_only_this_machine_is_served() -> None:
    settings = load([])
    assert settings.listen == ("127.0.0.1:50051",)
    assert settings.http_listen == "127.0.0.1:8002"
    assert settings.exposed == ()


def test_a_flag_wins_over_a_variable_over_a_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch, config: Callable[[str], str]
) -> None:
    file = config("grace = 1.5\nthreads = 1\nmax_work = 7\n")
    monkeypatch.setenv("CONVOLVER_GRACE", "2.5")
    monkeypatch.setenv("CONVOLVER_THREADS", "2")
    settings = load(["--config", file, "--grace", "3.5"])
    assert (settings.grace, settings.threads, settings.max_work, settings.drain_delay) == (3.5, 2, 7, 0.0)


def test_listen_may_be_repeated() -> None:
    assert load(["--listen", "127.0.0.1:0", "--listen", "unix:/run/x"]).listen == ("127.0.0.1:0", "unix:/run/x")


def test_a_variable_lists_addresses_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLVER_LISTEN", "127.0.0.1:1, unix:/run/x")
    assert load([]).listen == ("127.0.0.1:1", "unix:/run/x")


def test_a_file_lists_addresses_as_an_array(config: Callable[[str], str]) -> None:
    file = config('listen = ["127.0.0.1:1", "[::1]:2"]')
    assert load(["--config", file]).listen == ("127.0.0.1:1", "[::1]:2")


@pytest.mark.parametrize("word", ["", "none"])
def test_http_is_switched_off_by_a_flag_a_variable_or_a_file(
    word: str, monkeypatch: pytest.MonkeyPatch, config: Callable[[str], str]
) -> None:
    assert load(["--http-listen", word]).http_listen is None
    assert load(["--config", config(f'http_listen = "{word}"')]).http_listen is None
    monkeypatch.setenv("CONVOLVER_HTTP_LISTEN", word)
    assert load([]).http_listen is None


def test_one_request_may_take_the_whole_memory_budget_unless_told_otherwise() -> None:
    assert load(["--memory-budget", "1GiB"]).max_request_bytes == 2**30
    assert load(["--memory-budget", "1GiB", "--max-request-bytes", "1MiB"]).max_request_bytes == 2**20


def test_a_request_larger_than_the_memory_budget_is_refused(refused: Callable[..., str]) -> None:
    lines = refused("--memory-budget", "1GiB", "--max-request-bytes", "2GiB")
    assert lines == (
        "convolver-server: --max-request-bytes: '2GiB': a request of 2GiB could never fit a memory_budget of 1GiB\n"
    )


def test_an_address_named_twice_is_refused(refused: Callable[..., str]) -> None:
    assert "unix:/run/x is named 2 times" in refused("--listen", "unix:/run/x", "--listen", "unix:///run/x")


def test_port_zero_may_be_named_twice() -> None:
    assert len(load(["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]).listen) == 2


def test_http_takes_no_unix_socket(refused: Callable[..., str]) -> None:
    assert "--http-listen: 'unix:/run/x': HTTP is served on host:port" in refused("--http-listen", "unix:/run/x")


def test_exposed_are_the_addresses_that_other_machines_reach() -> None:
    listen = ("127.0.0.1:1", "[::1]:2", "localhost:3", "unix:/run/x", "0.0.0.0:4", "[::]:5", "server:6")
    assert Settings(listen=listen).exposed == ("0.0.0.0:4", "[::]:5", "server:6")


def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setenv("CONVOLVER_MAX_MESAGE", "1MiB")
    assert refused() == (
        "convolver-server: CONVOLVER_MAX_MESAGE: there is no such variable, the nearest is CONVOLVER_MAX_MESSAGE\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "CONVOLVER_ADDRESS",
        "CONVOLVER_SERVICE_HOST",
        "CONVOLVER_SERVICE_PORT_GRPC",
        "CONVOLVER_PORT",
        "CONVOLVER_PORT_50051_TCP_ADDR",
        "CONVOLVER_SERVER_SERVICE_PORT",
        "CONVOLVER_SERVER_PORT_50051_TCP",
    ],
)
def test_variables_of_the_client_and_of_kubernetes_are_passed_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:50051")
    assert load([]) == Settings()


def test_an_unknown_key_in_the_file_is_refused_with_the_nearest_name(
    config: Callable[[str], str], refused: Callable[..., str]
) -> None:
    file = config('lisen = "127.0.0.1:1"')
    assert refused("--config", file) == (
        f"convolver-server: {file}: lisen: there is no such setting, the nearest is listen\n"
    )


@pytest.mark.parametrize("written", [b"grace = =", b'grace = "\\q"', b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(written: bytes, tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "server.toml"
    file.write_bytes(written)
    assert f"argument --config: {file}: " in refused("--config", str(file))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert f"there is no file {tmp_path}/server.toml" in refused("--config", f"{tmp_path}/server.toml")


@pytest.mark.parametrize("argv", [["--lissten", "127.0.0.1:1"], ["--lis", "127.0.0.1:1"], ["--threads"], ["serve"]])
def test_a_wrong_command_line_is_refused(argv: list[str], refused: Callable[..., str]) -> None:
    assert refused(*argv).startswith("usage: convolver-server")


def test_every_error_is_told_at_once_with_its_source_and_value(
    monkeypatch: pytest.MonkeyPatch, config: Callable[[str], str], refused: Callable[..., str]
) -> None:
    file = config('threads = "few"')
    monkeypatch.setenv("CONVOLVER_GRACE", "-1")
    monkeypatch.setenv("CONVOLVER_GRACES", "1")
    lines = refused(
        "--config", file, "--backend", "cuda", "--listen", "127.0.0.1:1", "--listen", "nowhere"
    ).splitlines()
    sources = ("CONVOLVER_GRACES:", "--listen: 'nowhere':", "--backend: 'cuda':", f"{file}: threads: 'few':")
    assert [line.startswith(f"convolver-server: {source} ") for line, source in zip(lines, sources, strict=False)] == [
        True
    ] * 4
    assert lines[4:] == ["convolver-server: CONVOLVER_GRACE: '-1': Input should be greater than or equal to 0"]


def test_print_config_prints_a_file_that_config_takes(
    capsys: pytest.CaptureFixture[str], config: Callable[[str], str]
) -> None:
    argv = ["--listen", "unix:/run/ä,[::1]:0", "--http-listen", "none", "--max-message", "1000", "--exit-on-eof"]
    with pytest.raises(SystemExit) as exit_:
        load([*argv, "--print-config"])
    assert exit_.value.code == 0
    assert load(["--config", config(capsys.readouterr().out)]) == load(argv)


def test_a_flag_can_take_back_what_a_variable_switches_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLVER_EXIT_ON_EOF", "true")
    assert load([]).exit_on_eof is True
    assert load(["--no-exit-on-eof"]).exit_on_eof is False


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().grace = 1.0  # type: ignore[misc]  # mypy knows it too


def test_settings_made_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLVER_GRACE", "7")
    assert Settings(threads=1).grace == 25.0


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in Settings.model_fields if f"  --{name.replace('_', '-')}" not in text] == []


def test_reading_the_settings_loads_neither_grpc_nor_numpy() -> None:
    code = (
        "import sys; from convolver.server.settings import load; load([]);"
        "print([name for name in ('grpc', 'numpy', 'torch', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_document_has_a_row_for_every_setting(name: str) -> None:
    field = Settings.model_fields[name]
    row = next(
        (line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `--{name.replace('_', '-')}`")), ""
    )
    assert f"`CONVOLVER_{name.upper()}`" in row
    if field.default_factory is None:
        shown = as_toml(Settings.model_construct(**{name: field.default})).splitlines()
        default = next(line for line in shown if line.startswith(f"{name} = ")).partition(" = ")[2].strip('"[]')
        assert f"`{default}`" in row
