"""The aliasing example: figures worked out again from what it says it does, and a picture that is one."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from joulegram_pipeline.exact import div_half_even
from simulators.powercap import INTEL_RANGE_UJ, PowercapTree
from simulators.sidecar import clean_environment

DEMO = Path(__file__).parents[2] / "examples" / "aliasing_demo.py"
BURSTS_S = ((5.33, 7.09), (18.42, 19.17), (26.04, 29.51), (41.73, 43.08), (52.21, 52.89), (63.46, 108.92))
IDLE_W, BURST_W = 80, 400
WIDTH, HEIGHT = 1320, 1200


def run(
    directory: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *arguments]
    env = clean_environment(**(environment or {}))
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=60)


def cells(output: str, row: str) -> list[str]:
    """The words behind the name of a row."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"{row}  ")]
    return line.removeprefix(row).split()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two simulated minutes, and the folder it ran in."""
    folder: Path = tmp_path_factory.mktemp("aliasing")
    done = run(folder, "--duration", "120", "--speed", "1000")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_what_reads_often_enough_loses_nothing(demo: tuple[Path, str]) -> None:
    """S3-13: over a wrap of the counter, the agent at 10 Hz and the 15 s scraper have the truth to the microjoule."""
    truth_j = 120 * IDLE_W + sum((end - start) * (BURST_W - IDLE_W) for start, end in BURSTS_S)

    for row in ("at 10 Hz", "every second", "every 15 s"):
        assert cells(demo[1], row) == ["120", "s", f"{truth_j:.6f}", f"{truth_j:.6f}", "+0.000000"]


def test_what_is_masked_loses_what_the_mask_cuts_off(demo: tuple[Path, str]) -> None:
    """D-45, D-46: 2**32 uJ for each of three scrapes at 400 W; and what the real wrap leaves over, which it garbles."""
    lost_uj = 3 * 2**32 + (INTEL_RANGE_UJ + 1) % 2**32

    assert cells(demo[1], "every 15 s, 32 bits")[-1] == f"{-lost_uj / 1e6:+.6f}"


@pytest.mark.parametrize("at", range(len(BURSTS_S)))
def test_a_scraper_gives_a_burst_its_neighbours_average(demo: tuple[Path, str], at: int) -> None:
    """What a 15 s scraper misses is when: a short burst gets half of its energy at most, at 10 Hz nearly all of it."""
    start, end = BURSTS_S[at]
    truth, fine, fine_off, _, second_off, scraped, scraped_off = cells(demo[1], f"{start:.2f} to {end:.2f} s")

    assert float(truth) == pytest.approx((end - start) * BURST_W)
    assert float(scraped) == pytest.approx(scraper_j(start, end), abs=0.01)
    # A 10 Hz reader is off by what it cannot see at two edges: at most 100 ms of the difference in power.
    assert 0 <= float(truth) - float(fine) <= 0.1 * (BURST_W - IDLE_W)
    off = [float(text.rstrip("%")) for text in (fine_off, second_off, scraped_off)]
    assert off == sorted(off, reverse=True)
    assert off[2] < (-50 if end - start < 15 else -5)


def scraper_j(start: float, end: float) -> float:
    """The energy of a time at the mean power of each 15 s it lies in."""
    total = 0.0
    for low in range(0, 120, 15):
        high = low + 15
        mean_w = IDLE_W + sum(overlap(low, high, *burst) * (BURST_W - IDLE_W) / 15 for burst in BURSTS_S)
        total += mean_w * overlap(low, high, start, end)
    return total


def overlap(low: float, high: float, start: float, end: float) -> float:
    return max(0.0, min(high, end) - max(low, start))


def test_counters_wrap_when_it_says(demo: tuple[Path, str]) -> None:
    """At 400 W a package's counter wraps after 655 s, the finer ones after 164 s, the mask's after 10.7 s."""
    wraps = re.findall(r"^.*\S  +[\d,.]+ +([\d.]+) s +[\d.]+ s$", demo[1], re.MULTILINE)

    assert wraps == ["10.74", "163.84", "655.36"]
    assert div_half_even(INTEL_RANGE_UJ, 400 * 1_000_000) == 655


def test_the_picture_is_a_png_with_something_on_it(demo: tuple[Path, str]) -> None:
    """It decodes: every chunk's checksum holds, the pixels are all there, and they are of many colours."""
    size, pixels = decoded(demo[0] / "aliasing.png")

    assert "picture: aliasing.png" in demo[1]
    assert size == (WIDTH, HEIGHT)
    assert len(pixels) == HEIGHT * (1 + 4 * WIDTH)  # a filter byte a line, red, green, blue and alpha
    assert len(set(zip(pixels[1::4], pixels[2::4], pixels[3::4], strict=False))) > 100


def decoded(path: Path) -> tuple[tuple[int, int], bytes]:
    """Width and height, and the filtered lines, of a PNG of eight bits a channel (PNG 1.2, sections 3 and 5)."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, size = 8, b"", (0, 0)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        if kind == b"IHDR":
            size = struct.unpack_from(">II", body)
            assert body[8:10] == b"\x08\x06"
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    return size, zlib.decompress(packed)


def test_without_matplotlib_it_says_how_to_get_the_picture(tmp_path: Path) -> None:
    """The figures need nothing but joulegram; the picture is left out with its reason, and that is no failure."""
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")\n")
    done = run(tmp_path, "--duration", "30", "--speed", "1000", environment={"PYTHONPATH": str(tmp_path)})

    assert done.returncode == 0, done.stderr
    assert "no picture: No module named 'matplotlib'; pip install matplotlib" in done.stdout
    assert not (tmp_path / "aliasing.png").exists()


def test_a_real_counter_is_read_where_there_is_one(tmp_path: Path) -> None:
    """`--source powercap` reads the machine's own tree; nobody knows the truth, so the agent stands for it."""
    tree = PowercapTree(tmp_path / "sys")
    done = run(tmp_path, "--source", "powercap", "--sysfs-root", str(tree.root), "--duration", "1", "--scrape", "1")

    assert done.returncode == 0, done.stderr
    assert "agent, J" in done.stdout
    assert cells(done.stdout, "every 1 s")[-1] == "+0.000000"


def test_no_counter_is_said(tmp_path: Path) -> None:
    """Where there is none it says so and why, and what to do instead."""
    done = run(tmp_path, "--source", "powercap", "--sysfs-root", str(tmp_path / "sys"))

    assert done.returncode == 1
    assert re.search(r"no counter of a package here: no_powercap: .*leave out --source", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--duration", "10"), "--scrape: got 15, expected 1 to --duration, which is 10"),
        (("--speed", "0"), "--speed: got 0, expected more than 0"),
        (("--speed", "9", "--source", "powercap"), "expected more than 0, and 1 for --source powercap"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """A bad option gets an error that quotes what was got and what was expected."""
    done = run(tmp_path, *arguments)

    assert done.returncode == 2
    assert said in done.stderr
