"""The process that serves: handed its configuration, and without what read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from joulegram_service.config_file import load_config
from joulegram_service.handover import become, taken
from simulators.sidecar import JOULEGRAM, Serve, clean_environment

if TYPE_CHECKING:
    import pytest

    from joulegram_service.config import Config

SECRET = "Bearer nobody-may-see-this"


def written(tmp_path: Path) -> Path:
    """A file that sets what is not on the command line: a destination with a secret header."""
    file = tmp_path / "joulegram.yaml"
    destination = {"endpoint": "http://127.0.0.1:9", "headers": {"authorization": SECRET}}
    file.write_text(yaml.safe_dump({"upstream": {"destinations": {"hub": destination}}, "run": {"idle_timeout": "7m"}}))
    return file


def test_what_reads_a_configuration_is_not_in_the_process_that_serves(tmp_path: Path) -> None:
    """Same pid, its configuration whole, and neither pydantic nor YAML nor the command line's libraries mapped."""
    with Serve(tmp_path, f"--config={written(tmp_path)}", "--source=none") as serve:
        serve.wait_ready()
        assert serve.process is not None
        proc = Path(f"/proc/{serve.process.pid}")
        maps = (proc / "maps").read_text()
        words = (proc / "cmdline").read_bytes().split(b"\0")
        held = [os.readlink(fd) for fd in (proc / "fd").iterdir()]  # noqa: PTH115 - what it names need not be a path
        page = serve.get("/debug/pipelines")[1]
        assert serve.stop() == 0
    assert words[1:4] == [b"-P", b"-m", b"joulegram_service.serving"]
    assert SECRET.encode() not in b" ".join(words)
    loaded = {Path(line.split()[-1]).name for line in maps.splitlines() if ".so" in line}
    assert any(name.startswith("orjson") for name in loaded), "the names are those of libraries"
    assert not [name for name in loaded if name.startswith(("_pydantic", "_yaml"))]
    assert not [name for name in held if "joulegram-config" in name], "what was handed over is let go of"
    assert "hub" in page, "the destination of the file is there"


def test_nothing_heavy_is_imported_to_serve() -> None:
    """By name, because most of it is Python: nothing of it is mapped."""
    code = (
        "import sys, joulegram_service.serving; "
        "print([name for name in ('pydantic', 'yaml', 'typer', 'rich', 'grpc', 'cryptography') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_configuration_arrives_as_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys, and who set them; the descriptor is named in the command and inherited."""
    flags: dict[tuple[str, ...], str] = {("carbon", "region"): "SPP_KS"}
    config = load_config(written(tmp_path), flags, {"KFM_HW_ID": "node-7"}, {("carbon", "region"): "--region"})
    executed: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: executed.append(words))
    become(config)
    ((program, *_, descriptor),) = executed
    assert program == sys.executable
    assert os.get_inheritable(int(descriptor))
    again: Config = taken(int(descriptor))
    assert again == config
    assert again.origin == config.origin
    assert again.said("carbon", "region") == "--region (carbon.region)"
    assert again.upstream.destinations["hub"].headers["authorization"].value == SECRET


def test_what_fails_after_the_handover_has_its_exit_code(tmp_path: Path) -> None:
    """2 and the key as the user wrote it for a configuration, 1 for a start that fails."""

    def serve(*flags: str) -> subprocess.CompletedProcess[str]:
        ports = [f"--{name}-endpoint=127.0.0.1:0" for name in ("grpc", "http", "metrics")]
        command = [*JOULEGRAM, "serve", *ports, "--source=none", *flags]
        environment = clean_environment()
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    wrong = serve("--region=NOWHERE")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("joulegram: --region (carbon.region): got 'NOWHERE'")
    (tmp_path / "file").write_text("")
    failed = serve("--data-dir=file")
    assert failed.returncode == 1
    assert failed.stderr.startswith("joulegram: ")
    assert "Traceback" not in wrong.stderr + failed.stderr
