"""`nvidia-smi` over the boards of `NvmlSim`: says their power as it is asked to, times SMI_FACTOR.

It is copied beside the library it speaks of, and run as a program.
"""

import os
import sys
import time
from datetime import datetime
from pathlib import Path

ASKED = ["--query-gpu=timestamp,uuid,power.draw", "--format=csv,noheader,nounits", "--loop-ms=100"]

if __name__ == "__main__":
    if sys.argv[1:] != ASKED:
        sys.exit(f"got {sys.argv[1:]}, expected {ASKED}")
    factor = float(os.environ.get("SMI_FACTOR", "1"))
    while True:
        for line in Path(__file__).with_name("nvml.txt").read_text().splitlines():
            kind, *words = line.split()
            if kind == "board":
                at = datetime.now().astimezone().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
                sys.stdout.write(f"{at}, {words[0]}, {factor * int(words[2]) / 1000:.2f}\n")
        sys.stdout.flush()
        time.sleep(0.1)
