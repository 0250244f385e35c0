"""`python -m data_prep.audit`: see data_prep/audit/leaks.py."""

import sys

from data_prep.audit.leaks import main

if __name__ == "__main__":
    main(sys.argv[1:])
