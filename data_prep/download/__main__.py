"""Runs the command of data_prep/download/datasets.py."""

import sys

from data_prep.download.datasets import main

if __name__ == "__main__":
    main(sys.argv[1:])
