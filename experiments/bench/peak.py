"""`python -m experiments.bench.peak <words of data_prep.shards>`: builds, and prints the MB of memory that it took at its peak."""

import contextlib
import io
import sys
from pathlib import Path

from data_prep.shards import main

if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(sys.argv[1:])
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)  # unlike ru_maxrss it does not hold the peak of the process that started this one
