"""Answers from the model: greedy, batched, one image prefix shared by all of its questions.

Legend: Q questions alive, M distinct prefixes, T tokens, H language width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from src.data.prompt import Prompter, fit, pieces
from src.data.record import Record
from src.model.vlm import VLM


@dataclass
class Asked:
    """One question: the pixels of its images (uint8, 3HW each; none for text-only) and the prompt after them."""

    images: list[Tensor]
    prompt: list[int]
    prefix: str  # equal for questions that show the same images


@dataclass
class Answer:
    text: str
    confidence: float  # mean log-probability of the generated tokens


def ask(record: Record, *, images: list[Tensor], prefix: str, prompter: Prompter, max_new_tokens: int) -> Asked:
    """The last question of a record as the model sees it in training, cut to the same token budget."""
    tokens = prompter.tokens([text for pair in pieces(record) for text in pair])
    room = prompter.budget - len(prompter.prefix(len(images)))
    history = [token for text in tokens[:-2] for token in text]
    (prompt, _), *_ = fit([(history + tokens[-2], [0] * max_new_tokens)], room)[0]
    return Asked(images, prompt, prefix)


class Generator:
    """Greedy decoding on one device. `batch` bounds the questions that decode at once."""

    def __init__(self, model: VLM, prompter: Prompter, *, batch: int, max_new_tokens: int):
        self.model, self.prompter, self.batch, self.max_new_tokens = model.eval(), prompter, batch, max_new_tokens
        self.device = next(model.projector.parameters()).device
        vocabulary = model.language.base.config.vocab_size
        self.banned = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        self.banned[len(model.language.tokenizer) :] = True  # rows that only round the embedding up have no token
        self.banned[model.image_id] = True

    @torch.inference_mode()
    def answers(self, asked: list[Asked]) -> Iterator[tuple[int, Answer]]:
        """(number of the question, its answer), batch by batch: questions of one prefix together, longest prompts first."""
        order = sorted(range(len(asked)), key=lambda n: (len(asked[n].images), asked[n].prefix, len(asked[n].prompt)))
        for count in sorted({len(question.images) for question in asked}):
            alike = [n for n in order if len(asked[n].images) == count]
            for at in range(0, len(alike), self.batch):
                numbers = alike[at : at + self.batch]
                yield from zip(numbers, self._decode([asked[n] for n in numbers]), strict=True)

    def _decode(self, asked: list[Asked]) -> list[Answer]:
        cache, lengths_Q, logits_QV, width = self._prefill(asked)
        tokens: list[list[int]] = [[] for _ in asked]
        scores: list[list[float]] = [[] for _ in asked]
        alive = torch.arange(len(asked), device=self.device)
        prefix = len(self.prompter.prefix(len(asked[0].images)))
        longest = width - prefix
        # Prompts are padded on the left, between the shared prefix and the question: 1 = a real token.
        seen_QT = torch.ones(len(asked), width, dtype=torch.long, device=self.device)
        gap = torch.arange(longest, device=self.device)[None] < (longest - lengths_Q)[:, None]
        seen_QT[:, prefix:][gap] = 0
        position_Q = prefix + lengths_Q
        for _ in range(self.max_new_tokens):
            logprobs_QV = logits_QV.float().masked_fill(self.banned, -torch.inf).log_softmax(-1)
            best_Q, next_Q = logprobs_QV.max(-1)
            for number, token, score in zip(alive.tolist(), next_Q.tolist(), best_Q.tolist(), strict=True):
                tokens[number].append(token)
                scores[number].append(score)
            keep = (next_Q != self.prompter.eos).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < len(alive):  # finished questions leave the batch
                cache.batch_select_indices(keep)
                alive, next_Q, position_Q, seen_QT = alive[keep], next_Q[keep], position_Q[keep], seen_QT[keep]
            seen_QT = torch.cat([seen_QT, torch.ones_like(seen_QT[:, :1])], 1)
            logits_QV = self._step(self.model.language.embed(next_Q[:, None]), position_Q[:, None], seen_QT, cache)[:, -1]
            position_Q = position_Q + 1
        return [self._answer(*pair) for pair in zip(tokens, scores, strict=True)]

    def _prefill(self, asked: list[Asked]) -> tuple[DynamicCache, Tensor, Tensor, int]:
        """Images once per distinct prefix, then every question on its copy of the prefix."""
        firsts = {question.prefix: n for n, question in reversed(list(enumerate(asked)))}
        prefixes = {prefix: m for m, prefix in enumerate(firsts)}
        ids_MT = torch.tensor([self.prompter.prefix(len(asked[0].images))] * len(firsts), device=self.device)
        pixels = [image for n in firsts.values() for image in asked[n].images]
        images_NCHW = torch.stack(pixels).to(self.device) if pixels else torch.empty(0, device=self.device)
        cache = DynamicCache(config=self.model.language.base.config)
        self._step(self.model.embed(ids_MT, images_NCHW), None, None, cache)
        which_Q = torch.tensor([prefixes[question.prefix] for question in asked], device=self.device)
        cache.batch_select_indices(which_Q)

        lengths_Q = torch.tensor([len(question.prompt) for question in asked], device=self.device)
        longest, prefix = int(lengths_Q.max()), ids_MT.shape[1]
        ids_QT = torch.tensor([[self.prompter.eos] * (longest - len(q.prompt)) + q.prompt for q in asked], device=self.device)
        at_QT = torch.arange(longest, device=self.device)[None] - (longest - lengths_Q)[:, None]
        seen_QT = torch.cat([torch.ones(len(asked), prefix, dtype=torch.long, device=self.device), (at_QT >= 0).long()], 1)
        positions_QT = prefix + at_QT.clamp(min=0)
        hidden = self._step(self.model.language.embed(ids_QT), positions_QT, seen_QT, cache)
        return cache, lengths_Q, hidden[:, -1], prefix + longest

    def _step(self, e_BTH: Tensor, positions_BT: Tensor | None, seen_BT: Tensor | None, cache: DynamicCache) -> Tensor:
        """Logits of the last token, [B, 1, V]; the cache grows."""
        out = self.model.language.body(
            inputs_embeds=e_BTH, position_ids=positions_BT, attention_mask=seen_BT, past_key_values=cache, use_cache=True
        )
        return self.model.language.head(out.last_hidden_state[:, -1:])

    def _answer(self, tokens: list[int], scores: list[float]) -> Answer:
        ended = tokens and tokens[-1] == self.prompter.eos
        text = self.model.language.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        return Answer(text.strip(), sum(scores) / max(len(scores), 1))
