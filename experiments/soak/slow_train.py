"""`python -m src.train`, but each step takes longer while the file $SOAK_SLOW exists, by the seconds in it, so that Slurm stops the run."""

import functools
import os
import time
from pathlib import Path

import lightning

from src import train


class Pause(lightning.Callback):
    def on_train_batch_end(self, *args) -> None:
        if (file := Path(os.environ["SOAK_SLOW"])).exists():
            time.sleep(float(file.read_text()))


if __name__ == "__main__":
    train.train = functools.partial(train.train, callbacks=[Pause()])
    train.main()
