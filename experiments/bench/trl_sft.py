"""TRL's `SFTTrainer` on the model and the samples of a workload: `PYTHON -m experiments.bench.trl_sft a plain`.

PYTHON is the interpreter of the environment `trl` (experiments/soak/environments.py). The last line of the output is the result as JSON.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast, TrainerCallback

from experiments.bench import peers, workload
from experiments.bench.peers import Cost
from experiments.bench.synthetic_data import memory_mb
from experiments.bench.workload import BOS, EOS, IMAGE_ID, RATE, WARM_UP, WORKLOADS, Workload
from experiments.soak.exported import offline
from src.data.prompt import IGNORE, EncodedSample
from src.runtime.errors import UserError

SPECIAL = {0: "<unk>", BOS: "<s>", EOS: "</s>", IMAGE_ID: "<image>"}
LOG = Path("outputs/bench/trl.log")


class Result(NamedTuple):
    cost: Cost
    losses: list[float]  # mean per supervised token, one per step, warm-up included
    collator_seconds: float  # of CPU, of tokenisation and image processing in the timed steps, which `cost` does not count


def run(python: Path, name: str, side: str) -> Result:
    """Trains in a new process of the other environment. Raises `UserError` with the path of its log if it fails."""
    command = [str(python), "-m", "experiments.bench.trl_sft", name, side]
    with_one_thread = offline(OMP_NUM_THREADS="1", PYTHONPATH=".", CUDA_VISIBLE_DEVICES="")
    process = subprocess.run(command, capture_output=True, text=True, env=with_one_thread)
    if process.returncode:
        LOG.parent.mkdir(parents=True, exist_ok=True)
        LOG.write_text(process.stdout + process.stderr)
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"`{' '.join(command)}` failed with exit code {process.returncode}: {last}; see {LOG}")
    return parse_result(process.stdout)


def parse_result(output: str) -> Result:
    cost, losses, collator_seconds = json.loads(output.strip().splitlines()[-1])
    return Result(Cost(**cost), losses, collator_seconds)


def to_records(batch: list[EncodedSample], size: Workload) -> list[dict[str, Any]]:
    """Samples of one batch in TRL's prompt-completion format, with the images that `peers.pad` gives to the same batch."""
    pixels = iter(workload.random_pixels(sum(sample.num_images for sample in batch), size.image_size))
    records = []
    for sample in batch:
        visual, prompt = sample.num_images * size.patches, int((sample.labels == IGNORE).sum())
        words = [token_text(int(token)) for token in sample.ids]
        # The processor repeats the one image token per patch.
        question = [words[0], *[SPECIAL[IMAGE_ID]] * sample.num_images, *words[1 + visual : prompt]]
        images = [Image.fromarray(next(pixels).transpose(1, 2, 0)) for _ in range(sample.num_images)]
        records.append({"images": images, "prompt": " ".join(question), "completion": " ".join(words[prompt:])})
    return records


def token_text(token: int) -> str:
    return SPECIAL.get(token, f"w{token}")


def make_processor(size: Workload) -> LlavaProcessor:
    """Llava's processor for images of the model's size, with one word per token of the vocabulary."""
    words = {token_text(token): token for token in range(size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL.values()])
    named = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[EOS]}
    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=half, image_std=half)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named),
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        image_token=SPECIAL[IMAGE_ID],
    )


class StepClock(TrainerCallback):
    """CPU seconds of the steps after the warm-up. A step starts when its batch has been collated, as for the other sides."""

    def __init__(self) -> None:
        self.seconds = self.whole = 0.0

    def on_step_begin(self, args, state, control, **_) -> None:
        self._start = time.process_time()

    def on_step_end(self, args, state, control, **_) -> None:
        now = time.process_time()
        if state.global_step == WARM_UP:
            self._warm = now
        elif state.global_step > WARM_UP:
            self.seconds, self.whole = self.seconds + now - self._start, now - self._warm


def train(size: Workload, batches: list[list[EncodedSample]]) -> Result:
    """One epoch over the batches in their order, with TRL's own collator and its loss over the completion only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    losses = []

    class Trainer(SFTTrainer):
        def compute_loss(self, *arguments, **options):
            loss = super().compute_loss(*arguments, **options)
            losses.append(loss.detach())
            return loss

    records = Dataset.from_list([record for batch in batches for record in to_records(batch, size)])
    model, clock = peers.to_peft_llava(workload.make_model(size)), StepClock()
    with tempfile.TemporaryDirectory() as folder:
        # TRL's defaults are bfloat16 and gradient checkpointing. The other sides train in float32, and memory is not scarce here.
        settings = SFTConfig(
            folder,
            per_device_train_batch_size=size.batch,
            num_train_epochs=1,
            learning_rate=RATE,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            max_length=None,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=records, processing_class=make_processor(size), callbacks=[clock])
        before = memory_mb("VmRSS")
        trainer.train()
    tokens = sum(len(sample.ids) for batch in batches[WARM_UP:] for sample in batch)
    cost = Cost(tokens, clock.seconds, memory_mb("VmHWM") - before)
    return Result(cost, [loss.item() for loss in losses], clock.whole - clock.seconds)


def main(name: str, side: str) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    peers.pin_to_one_core()
    size = WORKLOADS[name]
    cost, losses, collator_seconds = train(size, peers.make_batches(size, side))
    print(json.dumps([vars(cost), losses, collator_seconds]))


if __name__ == "__main__":
    main(*sys.argv[1:])
