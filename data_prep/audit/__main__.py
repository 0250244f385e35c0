"""`python -m data_prep.audit`: see data_prep/audit/leaks.py."""

from data_prep.audit.leaks import main

if __name__ == "__main__":
    main()
