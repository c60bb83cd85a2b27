"""Reading `joulegram.yaml`: the file, the environment and the flags, and errors that quote the key.

A flag beats the environment, which beats the file. An unknown key, a bad unit or an unresolvable region is an error;
all of them are found at once.
"""

from __future__ import annotations

import dataclasses
import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config import Config, ConfigKeys
from joulegram_service.config_types import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_CREDENTIALS = re.compile(r"://[^/@]*@")
_EXPECTED = {
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
"""Kinds of pydantic's faults, in the words of the file."""

Read = TypeVar("Read", bound=Section)

ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "JOULEGRAM_DATA_DIR": ("data_dir",),
    "JOULEGRAM_GRPC_ENDPOINT": ("receiver", "protocols", "grpc", "endpoint"),
    "JOULEGRAM_HTTP_ENDPOINT": ("receiver", "protocols", "http", "endpoint"),
    "JOULEGRAM_METRICS_ENDPOINT": ("telemetry", "metrics", "endpoint"),
    "JOULEGRAM_AGENT_SOCKET": ("agent", "socket"),
    "JOULEGRAM_AGENT_SOURCE": ("agent", "source"),
    "JOULEGRAM_SYSFS_ROOT": ("agent", "sysfs_root"),
    "JOULEGRAM_PROC_ROOT": ("agent", "proc_root"),
    "JOULEGRAM_CGROUP_ROOT": ("agent", "cgroup_root"),
    "JOULEGRAM_AGENT_PROCESSES": ("agent", "processes"),
    "JOULEGRAM_REGION": ("carbon", "region"),
    "JOULEGRAM_TABLE": ("carbon", "table"),
    "JOULEGRAM_UPSTREAM": ("upstream", "endpoint"),
    "KFM_EMISSION_FACTOR_KG_PER_KWH": ("carbon", "factor", "kg_per_kwh"),
    "KFM_EMISSION_FACTOR_SOURCE": ("carbon", "factor", "source"),
    "KFM_HW_ID": ("host", "hw_id"),
    "KFM_HW_NAME": ("host", "hw_name"),
}
"""Variables and the keys they override. Others are ignored: Kubernetes sets JOULEGRAM_PORT and the like by itself."""


class ConfigFaultsError(ConfigError):
    """All faults of a configuration at once.

    Args:
        errors: one for each key.
        rest: the sections that are not at fault, the others on their defaults, so that more can be checked.
    """

    def __init__(self, errors: list[ConfigError], rest: Config) -> None:
        self.errors = errors
        self.rest = rest
        first = errors[0]
        super().__init__(first.key, first.got, first.expected)
        self.args = ("\n".join(str(error) for error in errors),)


def load_config(
    path: Path | None,
    flags: Mapping[tuple[str, ...], Any],
    environment: Mapping[str, str] | None = None,
    flag_names: Mapping[tuple[str, ...], str] | None = None,
) -> Config:
    """Read the file, lay the environment over it, and the flags over that.

    Args:
        path: the file; None runs on defaults.
        flags: key paths and the values of flags that were given.
        environment: for tests; the process's own by default.
        flag_names: how the user types the flag of a key path, as ``--region``.

    Raises:
        ConfigFaultsError: quoting every key that is wrong.
        ConfigError: the file cannot be read as YAML.
    """
    environ = os.environ if environment is None else environment
    origin: dict[tuple[str, ...], str] = {}
    faults: list[ConfigError] = []
    raw: dict[str, Any] = {} if path is None else _read(path, environ, faults)
    for name, keys in ENVIRONMENT.items():
        if environ.get(name):
            _put(raw, keys, environ[name])
            origin[keys] = f"{name} ({'.'.join(keys)})"
    for keys, value in flags.items():
        _put(raw, keys, value)
        origin.pop(keys, None)
        if flag_names is not None:
            origin[keys] = f"{flag_names[keys]} ({'.'.join(keys)})"
    faulty = {fault.key.partition(".")[0].partition("[")[0] for fault in faults}
    try:
        found = validated(ConfigKeys, {key: value for key, value in raw.items() if key not in faulty})
    except ValidationError as error:
        items = error.errors()
        faults += [_fault(item, origin) for item in items]
        faulty |= {str(item["loc"][0]) for item in items}
        found = validated(ConfigKeys, {key: value for key, value in raw.items() if key not in faulty})
    sections = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    config = Config(**sections, origin=origin)
    if faults:
        raise ConfigFaultsError(faults, config)
    return config


def validated(kind: type[Read], values: Any) -> Read:
    """A section with these keys.

    Raises:
        pydantic.ValidationError: with every fault.
    """
    read: Read = _reader(kind).validate_python(values)  # type: ignore[arg-type] # a class is hashable
    return read


def keys_of(section: type[Section]) -> dict[str, Any]:
    """The keys of a section and their types, without what is checked beside."""
    hints = get_type_hints(section)
    return {key.name: hints[key.name] for key in dataclasses.fields(section)}


def section_of(hint: Any) -> type[Section] | None:
    """The section that stands under a key of this type, itself or by names the user gives; None for a value."""
    kinds = [hint, *get_args(hint), *(inner for kind in get_args(hint) for inner in get_args(kind))]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _read(path: Path, environ: Mapping[str, str], faults: list[ConfigError]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("--config", str(path), f"a readable file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError("--config", str(path), f"UTF-8 ({error})") from error
    try:
        raw = yaml.safe_load(text)
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise ConfigError("--config", type(raw).__name__, "a mapping of keys at the top of the file")
        return {str(key): _substitute(value, str(key), environ, faults) for key, value in raw.items()}
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError("--config", str(path), f"YAML ({error})") from error


def _substitute(value: Any, key: str, environ: Mapping[str, str], faults: list[ConfigError]) -> Any:
    if isinstance(value, dict):
        return {str(name): _substitute(inner, f"{key}.{name}", environ, faults) for name, inner in value.items()}
    if isinstance(value, list):
        return [_substitute(inner, f"{key}[{index}]", environ, faults) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = environ.get(match[1], match[2])
        if found is None:
            faults.append(ConfigError(key, match[0], f"an environment variable {match[1]} that is set"))
            return match[0]
        return found

    return _ENV.sub(fill, value)


def _put(raw: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.get(key)
        if not isinstance(inner, dict):
            inner = raw[key] = {}
        raw = inner
    raw[keys[-1]] = value


def _fault(item: Any, origin: Mapping[tuple[str, ...], str]) -> ConfigError:
    where = tuple(str(part) for part in item["loc"])
    key = origin.get(where) or "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])[1:]
    got = item["input"]
    if isinstance(got, str):
        got = _CREDENTIALS.sub("://...@", got)
    if item["type"] == "unexpected_keyword_argument":
        return ConfigError(key, got, f"no such key; here may stand {_siblings(where)}")
    if item["type"] == "missing":
        return ConfigError(key, None, "a value: it is required beside its sibling keys")
    if item["type"] == "dataclass_type":
        return ConfigError(key, got, f"a mapping that may hold {_siblings((*where, ''))}")
    if item["type"] in _EXPECTED:
        return ConfigError(key, got, _EXPECTED[item["type"]])
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigError(key, got, message[0].lower() + message[1:])


def _siblings(where: tuple[str, ...]) -> str:
    section: type[Section] = ConfigKeys
    named = False
    for part in where[:-1]:
        if named:  # by the user, as a destination
            named = False
            continue
        hint = keys_of(section).get(part)
        inner = section_of(hint)
        if inner is None:
            return "none"
        section, named = inner, get_origin(hint) is dict
    return ", ".join(sorted(keys_of(section)))
