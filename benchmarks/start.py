"""How long `joulegram --help` and `import joulegram` take: best and median of several fresh starts.

python benchmarks/start.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 9
CASES = {
    "joulegram --help": [sys.executable, "-m", "joulegram_service", "--help"],
    "import joulegram": [sys.executable, "-c", "import joulegram"],
    "python alone": [sys.executable, "-c", "pass"],
}


def main() -> None:
    print(f"{'':<18} {'best ms':>8} {'median ms':>10}")
    for name, command in CASES.items():
        taken = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken.append(1000 * (time.perf_counter() - start))
        print(f"{name:<18} {min(taken):>8.0f} {statistics.median(taken):>10.0f}")


if __name__ == "__main__":
    main()
