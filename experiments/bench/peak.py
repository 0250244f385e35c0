"""`python -m experiments.bench.peak <arguments of data_prep.shards>`: builds shards and prints the peak memory in MB."""

import contextlib
import io
import sys

from data_prep.shards import main
from experiments.bench.synthetic_data import memory_mb

if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(sys.argv[1:])
    print(memory_mb("VmHWM"))  # ru_maxrss would include the peak of the parent process
