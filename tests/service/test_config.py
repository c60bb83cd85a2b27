"""`joulegram.yaml`, the environment and the flags: what is read, what beats what, how a fault is said (design 11)."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config import Config
from joulegram_service.config_file import ENVIRONMENT, ConfigFaultsError, load_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REGION = ("carbon", "region")
UPSTREAM = ("upstream", "endpoint")


def load(path: Path, text: str | bytes, env: Mapping[str, str] | None = None, **options: Any) -> Config:
    """Load this text as the file, in an environment that holds nothing else."""
    file = path / "joulegram.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(file, options.pop("flags", {}), env or {}, **options)


def faults(path: Path, text: str | bytes, env: Mapping[str, str] | None = None) -> list[str]:
    """The lines a user is shown."""
    with pytest.raises(ConfigError) as caught:
        load(path, text, env)
    return str(caught.value).splitlines()


def test_without_a_file_the_defaults_run() -> None:
    """No file, no variable, no flag: a configuration all the same (design 11)."""
    config = load_config(None, {}, {})
    assert config == Config()
    assert config.receiver.protocols.grpc.endpoint == "127.0.0.1:4317"
    assert config.telemetry.metrics.endpoint == "127.0.0.1:9464"
    assert (config.carbon.region, config.carbon.factor) == (None, None), "no factor and no region is assumed (D-16)"
    assert (config.host.hw_id, config.host.hw_name) == ("host-unknown", "kfm-node")  # S0-49


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}"])
def test_an_empty_file_is_no_fault(tmp_path: Path, text: str) -> None:
    """A file that sets nothing runs on the defaults."""
    assert load(tmp_path, text) == Config()


BAD: dict[str, tuple[str, str, str]] = {
    "an unknown section": ("recevier: {}", "recevier: got {}", "no such key; here may stand agent, carbon, data_dir"),
    "an unknown key": ("energy:\n  max_weight: 30s", "energy.max_weight: got '30s'", "may stand idle, max_wait, reten"),
    "an unknown key three floors down": (
        "receiver: {protocols: {grpc: {endpont: 'x:1'}}}",
        "receiver.protocols.grpc.endpont: got 'x:1'",
        "no such key; here may stand auth, endpoint",
    ),
    "an unknown key of the factor": (
        "carbon: {factor: {kg_per_kwh: 0.4, source: bill, unit: g}}",
        "carbon.factor.unit: got 'g'",
        "no such key; here may stand kg_per_kwh, source",
    ),
    "an unknown key of a destination, which the user names": (
        "upstream: {destinations: {hub: {endpoint: 'grpc://c:1', endpiont: x}}}",
        "upstream.destinations.hub.endpiont: got 'x'",
        "no such key; here may stand compression, endpoint, headers",
    ),
    "an unknown key below a destination": (
        "upstream: {destinations: {hub: {endpoint: 'grpc://c:1', tls: {ca: x}}}}",
        "upstream.destinations.hub.tls.ca: got 'x'",
        "no such key; here may stand ca_file, cert_file",
    ),
    "a destination that is an address": (
        "upstream: {destinations: {hub: 'grpc://c:1'}}",
        "upstream.destinations.hub: got 'grpc://c:1'",
        "a mapping that may hold compression, endpoint",
    ),
    "a duration without a unit": ("energy: {max_wait: 30}", "energy.max_wait: got 30", "30s, 15m, 24h or 7d"),
    "a duration in quotes without a unit": ("energy: {max_wait: '30'}", "energy.max_wait: got '30'", "with a unit"),
    "a unit that is spelled out": ("energy: {retention: 30 sec}", "energy.retention: got '30 sec'", "with a unit"),
    "a duration of two parts": ("run: {idle_timeout: 1h30m}", "run.idle_timeout: got '1h30m'", "with a unit"),
    "a duration below 0": ("run: {idle_timeout: -5s}", "run.idle_timeout: got '-5s'", "with a unit"),
    "a duration with a line feed": ('energy: {max_wait: "30s\\n"}', r"energy.max_wait: got '30s\n'", "with a unit"),
    "a duration that is a list": ("shutdown: {drain_timeout: [10s]}", "shutdown.drain_timeout: got ['10s']", "unit"),
    "an endpoint without a host": (
        "receiver: {protocols: {grpc: {endpoint: ':4317'}}}",
        "receiver.protocols.grpc.endpoint: got ':4317'",
        "host:port, as 127.0.0.1:4317",
    ),
    "an endpoint without a port": (
        "telemetry: {metrics: {endpoint: localhost}}",
        "telemetry.metrics.endpoint: got 'localhost'",
        "host:port",
    ),
    "a port that is none": (
        "telemetry: {metrics: {endpoint: 'localhost:65536'}}",
        "telemetry.metrics.endpoint: got 'localhost:65536'",
        "host:port",
    ),
    "an endpoint that is a port": ("receiver: {protocols: {http: {endpoint: 4318}}}", "got 4318", "host:port"),
    "an upstream without a scheme": ("upstream: {endpoint: 'c:4317'}", "got 'c:4317'", "grpc://host:port or http://"),
    "an upstream of another scheme": (
        "upstream: {endpoint: 'ftp://c:1'}",
        "got 'ftp://c:1'",
        "grpcs:// or https://",
    ),
    "an upstream without a port": ("upstream: {endpoint: 'grpc://c'}", "upstream.endpoint: got 'grpc://c'", "host:po"),
    "a source that is none": (
        "agent: {source: rapl}",
        "agent.source: got 'rapl'",
        "'powercap', 'msr', 'perf', 'hwmon', 'nvml', 'model' or 'none'",
    ),
    "an idle policy that is none": (
        "energy: {idle: split}",
        "energy.idle: got 'split'",
        "expected 'bucket' or 'share'",
    ),
    "a STAC key that is none": ("stac: {key: carbon}", "stac.key: got 'carbon'", "'telemetry' or 'kfm:telemetry'"),
    "a section that is a number": ("receiver: 4317", "receiver: got 4317", "a mapping that may hold limits, meta"),
    "a section that is empty": (
        "carbon:",
        "carbon: got None",
        "a mapping that may hold factor, region, table, table_d",
    ),
    "a list that is text": ("selector: {names: etl.job}", "selector.names: got 'etl.job'", "expected a list"),
    "a folder that is a number": ("carbon: {table_dirs: [1]}", "carbon.table_dirs[0]: got 1", "expected a path"),
    "a region that is a number": ("carbon: {region: 5}", "carbon.region: got 5", "expected text"),
    "a hardware id of nothing": ("host: {hw_id: ''}", "host.hw_id: got ''", "1 character at least"),
    "a hardware name without end": (f"host: {{hw_name: {'x' * 129}}}", "host.hw_name: got 'xxx", "128 characters at"),
    "a factor without its source": (
        "carbon: {factor: {kg_per_kwh: 0.4}}",
        "carbon.factor.source: got None",
        "a value: it is required",
    ),
    "a source without its factor": (
        "carbon: {factor: {source: bill}}",
        "carbon.factor.kg_per_kwh: got None",
        "a value: it is required",
    ),
    "a factor that is yes": (
        "carbon: {factor: {kg_per_kwh: yes, source: bill}}",
        "carbon.factor.kg_per_kwh: got True",
        "a decimal number of kg/kWh",
    ),
    "a factor that is a list": (
        "carbon: {factor: {kg_per_kwh: [0.4], source: bill}}",
        "carbon.factor.kg_per_kwh: got [0.4]",
        "a decimal number of kg/kWh",
    ),
    "a variable that is not set": (
        "carbon: {region: '${env:GRID}'}",
        "carbon.region: got '${env:GRID}'",
        "an environment variable GRID that is set",
    ),
    "a variable that is not set, in a list": (
        "carbon: {table_dirs: [/a, '/b/${env:GRID}']}",
        "carbon.table_dirs[1]: got '${env:GRID}'",
        "an environment variable GRID that is set",
    ),
}


@pytest.mark.parametrize(("text", "quoted", "expected"), BAD.values(), ids=BAD)
def test_a_fault_quotes_the_key_the_value_and_what_may_stand_there(
    tmp_path: Path, text: str, quoted: str, expected: str
) -> None:
    """One line: the key as the user wrote it, what stood there, and what was expected (design 11)."""
    (line,) = faults(tmp_path, text)
    assert quoted in line
    assert expected in line
    assert "Config" not in line, "the user does not know our classes"


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    """Ten mistakes in one file are ten lines, whatever their kind."""
    chosen = [
        "an unknown section",
        "a duration without a unit",
        "an upstream without a scheme",
        "a source that is none",
        "a section that is a number",
        "a STAC key that is none",
        "a list that is text",
        "a hardware id of nothing",
        "a duration below 0",
        "a variable that is not set",
    ]
    text = "\n".join(BAD[name][0] for name in chosen)
    lines = faults(tmp_path, text)
    assert len(lines) == len(chosen)
    for name in chosen:
        assert any(BAD[name][1] in line and BAD[name][2] in line for line in lines), name


def test_what_is_not_at_fault_can_be_checked_further(tmp_path: Path) -> None:
    """The error carries the sections that are right, and the defaults for the others."""
    with pytest.raises(ConfigFaultsError) as caught:
        load(tmp_path, "energy: {max_wait: 30}\ncarbon: {region: MISO}\nrun: {idle_timeout: '${env:X}'}")
    assert caught.value.rest.carbon.region == "MISO"
    assert caught.value.rest.energy == Config().energy
    assert caught.value.rest.run == Config().run
    assert [error.key for error in caught.value.errors] == ["run.idle_timeout", "energy.max_wait"]


NO_FILE: dict[str, tuple[bytes, str]] = {
    "a list": (b"- a\n- b\n", "--config: got 'list', expected a mapping of keys at the top of the file"),
    "text": (b"joulegram", "--config: got 'str', expected a mapping"),
    "no YAML": (b"a: [1, 2", "expected YAML (while parsing a flow"),
    "two documents": (b"a: 1\n---\nb: 2\n", "expected YAML (expected a single document"),
    "a tag that makes objects": (
        b"a: !!python/object/apply:os.system [ls]\n",
        "expected YAML (could not determine a con",
    ),
    "no UTF-8": (b"a: \xff", "expected UTF-8"),
    "a key that holds itself": (b"a: &a\n  b: *a\n", "expected YAML (maximum recursion depth"),
}


@pytest.mark.parametrize(("data", "expected"), NO_FILE.values(), ids=NO_FILE)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, data: bytes, expected: str) -> None:
    """The fault is of --config, whose value is quoted where there is no key yet."""
    message = "\n".join(faults(tmp_path, data))
    assert message.startswith("--config: got ")
    assert expected in message


@pytest.mark.parametrize(
    ("name", "why"), [("missing.yaml", "No such file"), ("folder", "Is a directory"), ("file/x", "Not a directory")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, why: str) -> None:
    """The path is quoted with the reason."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"a readable file .{why}") as caught:
        load_config(tmp_path / name, {}, {})
    assert repr(str(tmp_path / name)) in str(caught.value)


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    """In that order, key by key (S0-55: env, config and command line)."""
    text = "carbon: {region: from-file}\nhost: {hw_id: from-file}\ndata_dir: from-file"
    env = {"JOULEGRAM_REGION": "from-env", "KFM_HW_ID": "from-env"}
    config = load(tmp_path, text, env, flags={REGION: "from-flag"})
    assert (config.carbon.region, config.host.hw_id, str(config.data_dir)) == ("from-flag", "from-env", "from-file")


VALUES = {
    "JOULEGRAM_DATA_DIR": "/data",
    "JOULEGRAM_GRPC_ENDPOINT": "h:1",
    "JOULEGRAM_HTTP_ENDPOINT": "h:2",
    "JOULEGRAM_METRICS_ENDPOINT": "h:3",
    "JOULEGRAM_AGENT_SOCKET": "/run/a",
    "JOULEGRAM_AGENT_SOURCE": "model",
    "JOULEGRAM_SYSFS_ROOT": "/host/sys",
    "JOULEGRAM_PROC_ROOT": "/host/proc",
    "JOULEGRAM_CGROUP_ROOT": "/host/cgroup",
    "JOULEGRAM_AGENT_PROCESSES": "all",
    "JOULEGRAM_REGION": "iso3:DEU",
    "JOULEGRAM_TABLE": "t",
    "JOULEGRAM_UPSTREAM": "grpc://h:4",
    "KFM_EMISSION_FACTOR_KG_PER_KWH": "0.25",
    "KFM_EMISSION_FACTOR_SOURCE": "bill",
    "KFM_HW_ID": "node-7",
    "KFM_HW_NAME": "worker",
}


def test_every_variable_sets_its_key() -> None:
    """Each of ENVIRONMENT arrives where it says; the factor is kept as it was written (S0-55, S0-49)."""
    assert VALUES.keys() == ENVIRONMENT.keys()
    config = load_config(None, {}, VALUES)
    for name, keys in ENVIRONMENT.items():
        found: Any = config
        for key in keys:
            found = getattr(found, key)
        assert str(found) == VALUES[name], name


def test_other_variables_and_empty_ones_are_none() -> None:
    """Kubernetes sets JOULEGRAM_PORT by itself; an empty variable is one that is not set."""
    env = {"JOULEGRAM_PORT": "tcp://10.0.0.1:4317", "JOULEGRAM_SERVICE_HOST": "10.0.0.1", "JOULEGRAM_REGION": ""}
    assert load_config(None, {}, env) == Config()


def test_a_fault_is_said_of_whoever_set_the_value(tmp_path: Path) -> None:
    """File key, variable or flag, as the user typed it, with the key behind it."""
    names = {UPSTREAM: "--upstream"}
    assert faults(tmp_path, "upstream: {endpoint: x}")[0].startswith("upstream.endpoint: got 'x'")
    assert faults(tmp_path, "", {"JOULEGRAM_UPSTREAM": "y"})[0].startswith(
        "JOULEGRAM_UPSTREAM (upstream.endpoint): got 'y'"
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", {"JOULEGRAM_UPSTREAM": "y"}, flags={UPSTREAM: "z"}, flag_names=names)
    assert str(caught.value).startswith("--upstream (upstream.endpoint): got 'z'")


def test_credentials_in_an_address_are_not_repeated(tmp_path: Path) -> None:
    """What is printed ends up in logs: user and password stay out of it (S0-63)."""
    (line,) = faults(tmp_path, "upstream: {endpoint: 'http://alice:hunter2@collector:4317'}")
    assert "hunter2" not in line
    assert "alice" not in line
    assert "collector:4317" in line


SUBSTITUTED = {
    "a variable": ("${env:GRID}", {"GRID": "MISO"}, "MISO"),
    "a default": ("${env:GRID:-SPP_KS}", {}, "SPP_KS"),
    "a default that is not needed": ("${env:GRID:-SPP_KS}", {"GRID": "MISO"}, "MISO"),
    "an empty default": ("a${env:GRID:-}b", {}, "ab"),
    "a default with a colon": ("${env:GRID:-egrid:SPNO}", {}, "egrid:SPNO"),
    "an empty variable": ("a${env:GRID:-x}b", {"GRID": ""}, "ab"),
    "two in one value": ("${env:A}:${env:B}", {"A": "egrid", "B": "SPNO"}, "egrid:SPNO"),
    "no second round": ("${env:A}", {"A": "${env:B}", "B": "no"}, "${env:B}"),
    "no substitution": ("$GRID ${GRID}", {"GRID": "no"}, "$GRID ${GRID}"),
}


@pytest.mark.parametrize(("text", "env", "expected"), SUBSTITUTED.values(), ids=SUBSTITUTED)
def test_variables_in_the_file(tmp_path: Path, text: str, env: dict[str, str], expected: str) -> None:
    """`${env:NAME}` and `${env:NAME:-default}`, once, inside any value (design 11)."""
    assert load(tmp_path, f"carbon: {{region: '{text}'}}", env).carbon.region == expected


def test_variables_in_lists_and_deep_keys(tmp_path: Path) -> None:
    """Everywhere a text may stand."""
    text = "carbon: {table_dirs: ['${env:D}/a']}\nreceiver: {protocols: {grpc: {endpoint: '${env:H}:1'}}}"
    config = load(tmp_path, text, {"D": "/srv", "H": "0.0.0.0"})
    assert [str(path) for path in config.carbon.table_dirs] == ["/srv/a"]
    assert config.receiver.protocols.grpc.endpoint == "0.0.0.0:1"


DURATIONS = {
    "500ms": 500_000_000,
    "30s": 30_000_000_000,
    "15m": 900_000_000_000,
    "24h": 86_400_000_000_000,
    "7d": 604_800_000_000_000,
    "0s": 0,
    "1.5h": 5_400_000_000_000,
    "8.2ms": 8_200_000,
}


@pytest.mark.parametrize(("text", "nanos"), DURATIONS.items())
def test_durations(tmp_path: Path, text: str, nanos: int) -> None:
    """Whole nanoseconds, exactly."""
    assert load(tmp_path, f"energy: {{max_wait: {text}}}").energy.max_wait == nanos


@given(st.integers(min_value=0, max_value=10**6), st.integers(min_value=0, max_value=999))
def test_a_duration_with_a_fraction_is_exact(seconds: int, millis: int) -> None:
    """Never a nanosecond less for want of binary fractions."""
    keys = ("energy", "max_wait")
    assert (
        load_config(None, {keys: f"{seconds}.{millis:03d}s"}, {}).energy.max_wait == (seconds * 1000 + millis) * 10**6
    )


FACTORS = {"0.394": "0.394", "'0.394'": "0.394", "0": "0", "0.40": "0.4", "'0.40'": "0.40", "1e-3": "1e-3"}


@pytest.mark.parametrize(("written", "kept"), FACTORS.items())
def test_a_factor_is_text(tmp_path: Path, written: str, kept: str) -> None:
    """A number of YAML becomes its shortest decimal, and 0 is a factor like any other (D-16)."""
    config = load(tmp_path, f"carbon: {{factor: {{kg_per_kwh: {written}, source: bill}}}}")
    assert config.carbon.factor is not None
    assert config.carbon.factor.kg_per_kwh == kept


def test_a_configuration_does_not_change(tmp_path: Path) -> None:
    """It is checked once: nobody sets a key afterwards."""
    with pytest.raises(FrozenInstanceError):
        load(tmp_path, "").data_dir = tmp_path  # type: ignore[misc]
