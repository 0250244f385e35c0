"""Scores of generated answers on the fixed validation records, beside the losses that the module computes."""

import lightning
import torch
import torch.distributed as dist

from src.data.datamodule import DataModule
from src.data.image_transform import record_pixels
from src.metrics.vqa import f1
from src.model.generate import GenerationRequest, Generator, make_request
from src.runtime.progress import Progress
from src.training.lightning_module import VLMLightningModule

MAX_ANSWER_TOKENS = 24  # tokens of an answer


class ValidationScores(lightning.Callback):
    """Logs `f1/<source>`: the mean token F1 of greedy answers to the first `data.val_generations` questions of each source.

    Captions have no question and hence a loss only. The callback also shows the progress of a validation.
    """

    def __init__(self, data: DataModule):
        self.data = data
        self._questions: list[tuple[GenerationRequest, int, list[str]]] | None = None

    def on_validation_epoch_start(self, trainer, module) -> None:
        self._progress = Progress(total=sum(trainer.num_val_batches), desc="validation losses", unit="batch", leave=False)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._progress.update()

    def on_validation_epoch_end(self, trainer, module) -> None:
        self._progress.close()
        if self._questions is None:
            self._questions = self.questions(rank=trainer.global_rank, world=trainer.world_size)
        with trainer.precision_plugin.forward_context():
            scores = self.scores(module, self._questions)
        module.log_dict({f"f1/{source}": score for source, score in scores.items()}, logger=False, batch_size=1, sync_dist=True)

    def scores(self, module: VLMLightningModule, questions: list[tuple[GenerationRequest, int, list[str]]]) -> dict[str, float]:
        """Mean token F1 of the greedy answers by source, over all ranks."""
        sums = torch.zeros(2, len(module.sources), dtype=torch.float32, device=module.device)
        generator = Generator(module.model, self.data.prompter, batch=16, max_new_tokens=MAX_ANSWER_TOKENS)
        answers = generator.answers([request for request, _, _ in questions])
        for number, answer in Progress(answers, total=len(questions), desc="validation answers", unit="question", leave=False):
            _, source, references = questions[number]
            sums[:, source] += torch.tensor([f1(answer.text, references), 1.0]).to(sums)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return {source: (total / count).item() for source, total, count in zip(module.sources, *sums, strict=True) if count > 0}

    def questions(self, *, rank: int, world: int) -> list[tuple[GenerationRequest, int, list[str]]]:
        """(request, number of its source, reference answers) for each question of this rank."""
        questions = []
        settings = self.data.data
        for number, source in enumerate(self.data.mixture.sources):
            shards = self.data.shards[source]
            index_rows = [row for row in self.data.val_rows[source].tolist() if shards.text(row).turns][: settings.val_generations]
            for row in index_rows[rank::world]:
                record = shards.text(row)
                pixels = record_pixels(shards, row, size=self.data.size, exact=settings.exact_decode) if settings.images else []
                images = [torch.from_numpy(image) for image in pixels]
                prefix = f"{source}:{row}" if images else ""
                request = make_request(record, images=images, prefix=prefix, prompter=self.data.prompter, max_new_tokens=MAX_ANSWER_TOKENS)
                questions.append((request, number, record.references or [record.answer]))
        return questions
