"""docs/configuration.md says what there is and nothing else, and `--help` what each command does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import pytest
import typer
import yaml

from joulegram_agent.cgroups import MAX_CGROUPS
from joulegram_agent.every_process import MOST
from joulegram_agent.sampler import RING_S
from joulegram_pipeline.metrics import Metrics
from joulegram_processor import machine, machine_types, native, runs, spans, waiting
from joulegram_receiver.http2_life import Http2Limits
from joulegram_service import cli, sidecar
from joulegram_service.config import Config, ConfigKeys
from joulegram_service.config_file import ENVIRONMENT, keys_of, load_config, section_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_service.config_types import Section

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
TEXT = PAGE.read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(cli.app)


def leaves(model: type[Section], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that holds a value, with the keys above it."""
    for name, kind in keys_of(model).items():
        inner = section_of(kind)
        if inner is None or get_origin(kind) is dict:  # by names the user gives: docs/upstream.md
            yield (*at, name)
        else:
            yield from leaves(inner, (*at, name))


def value_at(config: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        config = None if config is None else getattr(config, key)
    return config


def flat(raw: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*at, key))
        else:
            yield (*at, key), value


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    if not hasattr(group, "commands") or group.invoke_without_command:
        yield path, group
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(kind: str) -> list[str]:
    """The YAML of the page whose first line says it is of this kind."""
    return re.findall(rf"```yaml\n# {kind}\n(.*?)```", TEXT, re.DOTALL)


COMMANDS = dict(commands(COMMAND))
PROTOCOLS = ("receiver.protocols.grpc", "receiver.protocols.http")
OPTIONAL = {"carbon.factor", *(f"{protocol}.{part}" for protocol in PROTOCOLS for part in ("tls", "auth"))}
"""Sections that are not there by default."""

KEYS = [".".join(keys) for keys in leaves(ConfigKeys)]


def test_every_key_stands_in_the_table_once() -> None:
    """All keys of the configuration, and none that does not exist."""
    documented = [code(row[0])[0] for row in rows("Keys")]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(KEYS)


def test_the_defaults_of_the_table_are_the_defaults() -> None:
    """Each default, read as YAML, gives the configuration that no file gives; `none` is nothing."""
    for key, default, *_ in rows("Keys"):
        keys = tuple(code(key)[0].split("."))
        if default == "none":
            assert value_at(Config(), keys) is None, key
        else:
            given = yaml.safe_load(code(default)[0])
            assert value_at(load_config(None, {keys: given}, {}), keys) == value_at(Config(), keys), key


def test_variables_and_flags_stand_beside_their_key() -> None:
    """Each of ENVIRONMENT and each flag, in the row of the key it overrides, and no other."""
    variables = {keys: name for name, keys in ENVIRONMENT.items()}
    flags = {keys: "--" + name.replace("_", "-") for name, keys in cli.FLAGS.items()}
    for key, _, variable, flag, _meaning in rows("Keys"):
        keys = tuple(code(key)[0].split("."))
        assert code(variable) == [*filter(None, [variables.pop(keys, None)])], key
        assert code(flag) == [*filter(None, [flags.pop(keys, None)])], key
    assert (variables, flags) == ({}, {})


def test_the_page_with_all_keys_is_the_default_configuration() -> None:
    """It loads, every key is in it, and each value is the default, as the page claims."""
    (text,) = blocks("defaults")
    raw = dict(flat(yaml.safe_load(text)))
    assert load_config(None, raw, {}) == Config()
    inside = {key for key in KEYS if any(key.startswith(f"{section}.") for section in OPTIONAL)}
    assert {".".join(keys) for keys in raw} == ({*KEYS} - inside) | OPTIONAL


@pytest.mark.parametrize("number", range(2))
def test_an_example_changes_every_key_it_holds(tmp_path: Path, number: int) -> None:
    """It loads and prices energy, and no value in it is the default, as the page claims."""
    from joulegram_service.carbon_model import build_carbon

    text = blocks("changes")[number]
    (tmp_path / "joulegram.yaml").write_text(text)
    config = load_config(tmp_path / "joulegram.yaml", {}, {})
    for keys, _ in flat(yaml.safe_load(text)):
        assert value_at(config, keys) != value_at(Config(), keys), keys
    assert build_carbon(config)[0].intensity is not None


def test_every_yaml_of_the_page_is_one_of_these() -> None:
    """No example escapes the tests above."""
    assert TEXT.count("```yaml") == len(blocks("defaults")) + len(blocks("changes")) == 3


def test_the_fault_shown_is_the_fault_given(tmp_path: Path) -> None:
    """The message in the introduction is what joulegram says."""
    from joulegram_pipeline.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        load_config(None, {("energy", "max_wait"): 30}, {})
    assert f"    joulegram: {caught.value}\n" in TEXT


def test_every_metric_stands_in_the_table() -> None:
    """Name, type and labels of each family that /metrics has, and no other."""
    registry = Metrics().registry
    documented = {code(row[0])[0]: (row[1], tuple(code(row[2]))) for row in rows("Metrics")}
    labels = {collector._name: collector._labelnames for collector in registry._collector_to_names}  # type: ignore[attr-defined]
    real = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, tuple(labels[family.name]))
        for family in registry.collect()
    }
    assert documented == real
    assert all(row[3] for row in rows("Metrics"))


def test_every_command_stands_in_the_table_of_exit_codes() -> None:
    """Each command there is, and none that is not."""
    documented = {
        tuple(word for word in code(row[0])[0].split()[1:] if word.islower() and word.isalpha())
        for row in rows("Commands and exit codes")
    }
    assert documented == set(COMMANDS)


def flags_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


def test_every_flag_is_documented_and_no_other() -> None:
    """All flags of all commands are on the page, and the page names none that does not exist."""
    real = set().union(*(flags_of(command) for command in COMMANDS.values())) - {"--help"}
    documented = set(re.findall(r"`(--[a-z-]+)`", TEXT)) - {"--help"}
    assert documented == real


def test_what_is_said_of_a_commands_flags_is_so() -> None:
    """`run` has no endpoint, `validate`, `agent` and `verify` have what the page lists."""
    assert not {"--grpc-endpoint", "--http-endpoint", "--metrics-endpoint"} & flags_of(COMMANDS["run",])
    assert flags_of(COMMANDS["validate",]) - {"--help"} == {"--config", "--data-dir", "--region", "--upstream"}
    told = set(
        re.findall(r"`(--[a-z-]+)`", re.findall(r"`agent` takes (.*?), and reads neither", TEXT.replace("\n", " "))[0])
    )
    assert flags_of(COMMANDS["agent",]) - {"--help"} == told
    page = (ROOT / "docs" / "agent.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(--[a-z-]+)` \|", page, re.MULTILINE)
    roots = {"--sysfs-root", "--proc-root", "--cgroup-root"}
    assert set(explained) == told - {"--socket", "--source", "--processes", "--state"} - roots
    assert flags_of(COMMANDS["agent", "doctor"]) - {"--help"} == {"--json"} | roots
    assert flags_of(COMMANDS["ledger", "verify"]) - {"--help"} == {"--expect-head", "--expect-lines"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_variable_that_is_not_read(page: Path) -> None:
    """Every JOULEGRAM_… and KFM_… variable in the documentation does something."""
    named = set(re.findall(r"\b(?:JOULEGRAM|KFM)_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named <= {*ENVIRONMENT, "KFM_RUN_ID", native.VARIABLE}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_command_that_does_not_exist(page: Path) -> None:
    """Every `joulegram …` in code is a command, with flags that it has."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    (joulegram .*)$|`(joulegram [^`]*)`", text, re.MULTILINE)
    for line in (first or second for first, second in lines):
        words = line.partition(" # ")[0].partition(" -- ")[0].split()[1:]
        for length in (2, 1):
            command = COMMANDS.get(tuple(words[:length]))
            if command is not None:
                break
        assert command is not None, line
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= flags_of(command), line


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_with_an_example_and_exit_codes(path: tuple[str, ...]) -> None:
    """A sentence first, an example that is this command with flags it has, and what it exits with."""
    command = COMMANDS[path]
    text = command.get_help(command.context_class(command, info_name=" ".join(path)))
    sentence = next(line.strip() for line in text.splitlines()[1:] if line.strip())
    assert re.match(r"[A-Z].{10,}", sentence), sentence
    example = re.search(r"Example:\s+joulegram (.+)", text)
    assert example is not None
    words = example[1].partition(" -- ")[0].split()
    assert tuple(words[: len(path)]) == path
    assert {word for word in words if word.startswith("--")} <= flags_of(command)
    assert re.search(r"Exit codes: (0|that of COMMAND)", text)
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} is not explained"


def test_the_overview_lists_every_command() -> None:
    """`joulegram --help` leads to each."""
    text = COMMAND.get_help(COMMAND.context_class(COMMAND, info_name="joulegram"))
    for path in COMMANDS:
        assert re.search(rf"^  {path[0]}\b", text, re.MULTILINE)


LIMITS = {
    "header fields of a gRPC call": (f"{Http2Limits().max_head_bytes} bytes",),
    "a gRPC call, to come whole": (f"{Http2Limits().request_s:g} s",),
    "spans waiting for their energy": (str(machine_types.Settings().max_pending),),
    "waiting spans that have a part": (str(waiting.MAX_BESIDE),),
    "spans a retry is recognised among": (str(machine_types.Settings().dedupe_spans),),
    "processes whose energy": (str(sidecar.MAX_NAMED),),
    "text of a client": (f"{spans.MAX_NAME} characters",),
    "runs in memory": (str(machine.MAX_RUNS),),
    "traces listed": (str(runs.MAX_TRACES),),
    "ETL nodes listed": (str(runs.MAX_NODES),),
    "processes with a line": (str(MOST),),
    "cgroups an agent reads": (str(MAX_CGROUPS),),
    "ticks an agent keeps": (f"{RING_S} s",),
}


def test_the_limits_are_those_of_the_code() -> None:
    """Each row's value is the constant's, and each has a row."""
    found = {row[0]: row[1] for row in rows("Limits")}
    assert len(found) == len(LIMITS)
    for begin, (value,) in LIMITS.items():
        assert [limit for name, limit in found.items() if name.startswith(begin)] == [value], begin


def test_the_ports_are_the_defaults() -> None:
    """What stands in the table is what an empty configuration listens on, loopback alone."""
    config = Config()
    protocols = config.receiver.protocols
    endpoints = [protocols.grpc.endpoint, protocols.http.endpoint, config.telemetry.metrics.endpoint]
    assert [f"127.0.0.1:{row[0]}" for row in rows("Ports")] == endpoints


def test_links_between_pages_lead_somewhere() -> None:
    """Relative links of the page are files."""
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (PAGE.parent / target).is_file(), target
