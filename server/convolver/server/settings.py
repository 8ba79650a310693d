"""The server's settings: one frozen object, read once.

Flags win over CONVOLVER_* variables, those over the TOML file that --config names, that over the defaults.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from convolver.server.address import is_local
from convolver.server.setting_types import (
    LONGEST,
    Address,
    Age,
    Bytes,
    Count,
    LogLevel,
    Seconds,
    Size,
    SomeSeconds,
    Threads,
    a_quarter_of_the_memory_budget,
    a_workers_memory_budget,
    absent,
    half_the_memory,
    share,
    split_commas,
    the_memory_budget,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import ValidationInfo
    from pydantic_settings import PydanticBaseSettingsSource

__all__ = ["Bytes", "Settings", "as_toml", "load"]

PROGRAM = "convolver-server"
PREFIX = "CONVOLVER_"

FOREIGN_VARIABLES = (
    r"CONVOLVER_ADDRESS",  # the client's
    r"CONVOLVER_(\w+_)?SERVICE_(HOST|PORT(_\w+)?)",  # Kubernetes: of a Service called convolver or convolver-...
    r"CONVOLVER_(\w+_)?PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?",  # the same
)
"""Patterns of variables that begin like ours and are none of the server's settings."""

_METAVARS = {
    "Bytes": "BYTES",
    "float": "SECONDS",
    "int": "NUMBER",
    "tuple[str,...]": "ADDRESS",
    "{str,null}": "ADDRESS",
    "{float,null}": "SECONDS",
}


class Settings(BaseSettings):
    """The settings of one server. `Settings(...)` itself reads nothing from outside; `load` does."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", cli_implicit_flags=True, cli_kebab_case=True
    )

    listen: Annotated[
        tuple[Address, ...],
        NoDecode,
        BeforeValidator(split_commas),
        Field(min_length=1, description="where gRPC is served: host:port, [ipv6]:port or unix:/path; may be repeated"),
    ] = ("127.0.0.1:50051",)
    http_listen: Annotated[Address | None, BeforeValidator(absent)] = Field(
        "127.0.0.1:8002", description="where /metrics, /healthz and /readyz are served, or none"
    )
    workers: int = Field(
        1, ge=1, le=256, description="server processes that share the addresses, for hosts that compute on many cores"
    )
    backend: Literal["auto", "reference", "torch"] = Field(
        "auto", description="what computes; auto takes the cheapest for each request"
    )
    threads: Threads = Field(
        0, description="threads that compute, in each worker; 0 is one for each core that they may use"
    )
    max_message: Size = Field(Bytes(2**26), le=2**31 - 1, description="largest message that gRPC takes")
    max_output_elements: Count = Field(2**31 - 1, description="most elements of one answer")
    max_work: Count = Field(10**12, description="most multiply-accumulates of one request")
    memory_budget: Size = Field(
        default_factory=half_the_memory, description="bytes in flight, summed over all requests"
    )
    max_request_bytes: Size = Field(
        default_factory=a_workers_memory_budget, description="peak bytes of one request: inputs, output and workspace"
    )
    layer_budget: Size = Field(default_factory=a_quarter_of_the_memory_budget, description="bytes of layers that stay")
    shared_memory: bool = Field(default=False, description="let callers on this host share memory")
    shared_memory_budget: Size = Field(
        default_factory=the_memory_budget, description="bytes that all callers may share"
    )
    stream_window: Count = Field(64, le=65_536, description="requests in flight on one stream; then it is not read")
    max_concurrent_streams: Count = Field(
        100, le=2**31 - 1, description="calls that a connection carries at a time; further ones wait at their sender"
    )
    max_batch: Count = Field(32, description="most requests that run as one; 1 batches nothing")
    max_delay: Seconds = Field(
        0.0,
        description="seconds that a request may wait for company while something runs; "
        "nothing waits when the back end is idle",
    )
    queue_seconds: SomeSeconds = Field(
        10.0, description="estimated seconds of work that may wait; more is refused with a time to come again"
    )
    idle_timeout: SomeSeconds = Field(
        30.0, description="seconds without a byte after which a chunked call that has more to come or to give is ended"
    )
    drain_delay: Seconds = Field(
        0.0, description="seconds to go on serving after SIGTERM, while readiness already says no"
    )
    grace: Seconds = Field(25.0, description="seconds that the requests in flight then have to finish")
    max_connection_age: Age = Field(
        None, description="seconds after which a connection is renewed, about a tenth more or less, or none"
    )
    max_connection_age_grace: Seconds = Field(
        30.0, le=LONGEST, description="seconds that the calls of a connection to be renewed then have to finish"
    )
    log_level: LogLevel = Field("info", description="least severe messages that are logged")
    exit_on_eof: bool = Field(default=False, description="stop when standard input ends, as it does with a parent")

    @field_validator("listen")
    @classmethod
    def _once_each(cls, listen: tuple[str, ...]) -> tuple[str, ...]:
        twice = [where for where in listen if listen.count(where) > 1 and not where.endswith(":0")]
        if twice:
            raise ValueError(f"{twice[0]} is named {listen.count(twice[0])} times")
        return listen

    @field_validator("http_listen")
    @classmethod
    def _tcp(cls, http_listen: str | None) -> str | None:
        if http_listen and http_listen.startswith("unix:"):
            raise ValueError("HTTP is served on host:port or [ipv6]:port")
        return http_listen

    @field_validator("workers")
    @classmethod
    def _share_the_addresses(cls, workers: int, info: ValidationInfo) -> int:
        paths = [where for where in info.data.get("listen", ()) if where.startswith("unix:")]
        if workers > 1 and paths:
            raise ValueError(
                f"{paths[0]} can have but one process: the last that listens there silently takes the path"
            )
        return workers

    @field_validator("max_request_bytes")
    @classmethod
    def _fits_the_budget(cls, request: Bytes, info: ValidationInfo) -> Bytes:
        workers = info.data.get("workers", 1)
        whole = info.data.get("memory_budget", request)
        if request > share(whole, workers):
            shared = f", shared by {workers} workers" if workers > 1 else ""
            raise ValueError(f"a request of {request} could never fit a memory_budget of {whole}{shared}")
        return request

    @property
    def of_one_worker(self) -> Settings:
        """What one of the workers has to itself: its part of every budget, no HTTP, and its parent to end it."""
        names = ("memory_budget", "layer_budget", "shared_memory_budget")
        parts: dict[str, Bytes] = {name: share(getattr(self, name), self.workers) for name in names}
        return self.model_copy(update={**parts, "http_listen": None, "exit_on_eof": False})

    @property
    def exposed(self) -> tuple[str, ...]:
        """The addresses of `listen` that others than this machine can reach."""
        return tuple(where for where in self.listen if not is_local(where))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the hook's signature
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments alone: who makes a Settings gets what is written there, whatever the environment holds."""
        return (init_settings,)


class ConfigFile(NamedTuple):
    """A TOML file and what it sets."""

    path: str = ""
    values: dict[str, Any] = {}  # noqa: RUF012  # never written to


def load(argv: Sequence[str] | None = None) -> Settings:
    """The settings from `argv` (sys.argv[1:] by default), os.environ and the file that --config names.

    Prints them and exits 0 on --print-config; prints a line for each error and exits 2 if any is wrong.
    """
    parser = ArgumentParser(PROGRAM, description="Serves convolutions over gRPC.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", type=_config_file, default=ConfigFile(), help="settings in TOML")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as TOML and exit")
    flag_source = CliSettingsSource[ArgumentParser](Settings, root_parser=parser, add_argument_method=_add_argument)
    arguments = vars(parser.parse_args(argv))
    config, print_config = arguments.pop("config"), arguments.pop("print_config")
    flags, environment = flag_source(parsed_args=arguments)(), EnvSettingsSource(Settings)()

    errors = list(_misspelt_variables())
    try:
        settings = Settings(**{**config.values, **environment, **flags})
    except ValidationError as error:
        errors += _lines(error, flags, environment, config.path)
    if errors:
        parser.exit(2, "".join(f"{PROGRAM}: {line}\n" for line in errors))
    if print_config:
        sys.stdout.write(as_toml(settings))
        parser.exit()
    return settings


def as_toml(settings: Settings) -> str:
    """The settings as a file that --config takes."""
    shown = {name: "none" if value is None else value for name, value in settings}
    plain = {name: str(value) if isinstance(value, Bytes) else value for name, value in shown.items()}
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in plain.items())


def _add_argument(parser: ArgumentParser, *names: str, **options: Any) -> None:  # noqa: ANN401  # argparse's own
    options["help"] = (
        options["help"].replace("default factory", "default").replace("(default: null)", "(default: none)")
    )
    if "metavar" in options:  # --x and --no-x have none
        options["metavar"] = _METAVARS.get(options["metavar"], options["metavar"])
    parser.add_argument(*names, **options)


def _config_file(path: str) -> ConfigFile:
    if not Path(path).is_file():  # pydantic-settings passes over a missing file in silence
        raise ArgumentTypeError(f"there is no file {path}")
    try:
        return ConfigFile(path, TomlConfigSettingsSource(Settings, path)())
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"{path}: {error}") from error


def _nearest(name: str, names: Sequence[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


def _misspelt_variables() -> Iterator[str]:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted(os.environ):
        ours = name.upper().startswith(PREFIX) and name.upper() not in known
        if ours and not any(re.fullmatch(foreign, name) for foreign in FOREIGN_VARIABLES):
            yield f"{name}: there is no such variable, the nearest is {_nearest(name.upper(), known)}"


def _lines(error: ValidationError, flags: dict[str, Any], environment: dict[str, Any], path: str) -> Iterator[str]:
    for wrong in error.errors():
        name = str(wrong["loc"][0])
        if wrong["type"] == "default_factory_not_called":  # it follows from another error
            continue
        if name in flags:
            origin = f"--{name.replace('_', '-')}"
        else:
            origin = f"{PREFIX}{name.upper()}" if name in environment else f"{path}: {name}"
        if wrong["type"] == "extra_forbidden":
            yield f"{origin}: there is no such setting, the nearest is {_nearest(name, list(Settings.model_fields))}"
        else:
            yield f"{origin}: {wrong['input']!r}: {wrong['msg'].removeprefix('Value error, ')}"
