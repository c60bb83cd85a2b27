"""What a piece of work spends, in three lines: import, `with`, print.

    python examples/three_lines.py

Measured by an agent where one runs, else by the counters this user may read, else modelled, and it says which.
"""

from joulegram import EnergyRecorder

with EnergyRecorder(scope="process", model=True) as recorder:
    sum(number * number for number in range(5_000_000))
print(recorder.result)
