"""What a check measures on the fixed validation list: the loss per source, and how well its first questions are answered."""

import torch
import torch.distributed as dist

from src.data.datamodule import DataModule
from src.data.image_transform import record_pixels
from src.data.packing import Batch
from src.metrics.vqa import f1
from src.model.generate import GenerationRequest, Generator, make_request
from src.runtime.progress import Progress
from src.training.callbacks.csv_log import CSVLog
from src.training.lightning_module import VLMLightningModule

MAX_ANSWER_TOKENS = 24  # tokens of an answer


class Validation:
    """Called with the step: writes losses and scores to the log and returns the mean loss over sources, by which 'best' is chosen.

    `data.val_generations` questions per source are answered greedily; captions have a loss only.
    """

    def __init__(self, module: VLMLightningModule, data: DataModule, log: CSVLog):
        self.module, self.data, self.log = module, data, log
        self.batches: list[Batch] | None = None

    def __call__(self, step: int) -> float | None:
        trainer = self.module.trainer
        if self.batches is None:  # ranks are known only now
            share = {"rank": trainer.global_rank, "world": trainer.world_size}
            self.batches = self.data.validation_batches(**share)
            self.questions = self._questions(**share)
        with trainer.precision_plugin.forward_context():
            losses = self.module.validation_losses(Progress(self.batches, desc="validation losses", unit="batch", leave=False))
            scores = self.scores()
        mean = sum(losses.values()) / len(losses) if losses else None
        found = {f"val/{source}": loss for source, loss in losses.items()} | {f"f1/{source}": score for source, score in scores.items()}
        self.log.write(trainer, self.module, step, validation=found | ({"val": mean} if losses else {}))
        return mean

    def scores(self) -> dict[str, float]:
        """Mean token F1 of the greedy answers, by source, over all ranks."""
        model, sources = self.module.model, self.module.sources
        sums = torch.zeros(2, len(sources), dtype=torch.float32, device=self.module.device)
        generator = Generator(model, self.data.prompter, batch=16, max_new_tokens=MAX_ANSWER_TOKENS)
        answers = generator.answers([asked for asked, _, _ in self.questions])
        for number, answer in Progress(answers, total=len(self.questions), desc="validation answers", unit="question", leave=False):
            _, source, references = self.questions[number]
            sums[:, source] += torch.tensor([f1(answer.text, references), 1.0]).to(sums)
        model.train()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return {source: (total / count).item() for source, total, count in zip(sources, *sums, strict=True) if count > 0}

    def _questions(self, *, rank: int, world: int) -> list[tuple[GenerationRequest, int, list[str]]]:
        """(question, number of its source, accepted answers) of this rank."""
        found = []
        for number, source in enumerate(self.data.mixture.sources):
            shards, settings = self.data.shards[source], self.data.data
            rows = [row for row in self.data.val_rows[source].tolist() if shards.text(row).turns][: settings.val_generations]
            for row in rows[rank::world]:
                record = shards.text(row)
                shown = record_pixels(shards, row, size=self.data.size, exact=settings.exact_decode) if settings.images else []
                images = [torch.from_numpy(image) for image in shown]
                prefix = f"{source}:{row}" if images else ""
                asked = make_request(record, images=images, prefix=prefix, prompter=self.data.prompter, max_new_tokens=MAX_ANSWER_TOKENS)
                found.append((asked, number, record.references or [record.answer]))
        return found
