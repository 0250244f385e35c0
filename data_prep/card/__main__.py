"""`python -m data_prep.card`: see data_prep/card/render.py."""

import sys

from data_prep.card.render import main

if __name__ == "__main__":
    main(sys.argv[1:])
