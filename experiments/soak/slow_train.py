"""`python -m src.train`, but each step takes `SECONDS` more while the file $SOAK_SLOW exists, so that Slurm stops it before its end."""

import functools
import os
import time
from pathlib import Path

import lightning

from src import train

SECONDS = 8


class Pause(lightning.Callback):
    def on_train_batch_end(self, *args) -> None:
        if Path(os.environ["SOAK_SLOW"]).exists():
            time.sleep(SECONDS)


if __name__ == "__main__":
    train.train = functools.partial(train.train, callbacks=[Pause()])
    train.main()
