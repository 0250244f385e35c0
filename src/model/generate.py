"""Answers from the model: greedy, sampled, or the likeliest of given options; batched, one image prefix shared by its questions.

Legend: Q questions alive, M distinct prefixes, T tokens, H language width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from src.data.prompt import Prompter, prompt_answer_pairs, truncate_turns
from src.data.record import Record
from src.model.vlm import VLM


@dataclass
class GenerationRequest:
    """One question: the pixels of its images (uint8, 3HW each; none for text-only) and the prompt after them."""

    images: list[Tensor]
    prompt: list[int]
    prefix: str  # equal for questions that show the same images
    seed: int = 0  # of this question's draws, when sampling


@dataclass
class Answer:
    text: str
    confidence: float  # mean log-probability of its tokens
    unnormalised: str = ""  # of given options the likeliest as a whole; long options lose by this rule
    cut: bool = False  # it did not end within max_new_tokens

    def line(self) -> dict:
        """What a predictions file says of an answer."""
        line = {"prediction": self.text, "confidence": round(self.confidence, 6)}
        line |= {"prediction_unnormalised": self.unnormalised} if self.unnormalised else {}
        return line | {"cut": True} if self.cut else line


def make_request(record: Record, *, images: list[Tensor], prefix: str, prompter: Prompter, max_new_tokens: int) -> GenerationRequest:
    """The last question of a record as the model sees it in training, cut to the same token budget."""
    tokens = prompter.tokens([text for pair in prompt_answer_pairs(record) for text in pair])
    room = prompter.room(len(images), key=record.key)
    ends = [[], [prompter.eos]] * len(tokens)  # an earlier answer ends as it did in training
    history = [token for text, end in zip(tokens[:-2], ends, strict=False) for token in text + end]
    (prompt, _), *_ = truncate_turns([(history + tokens[-2], [0] * max_new_tokens)], room)[0]
    return GenerationRequest(images, prompt, prefix)


class Generator:
    """Decoding on one device. `batch` bounds the questions that decode at once.

    `temperature` 0 is greedy; above, tokens are drawn from the smallest set whose probability reaches `top_p`. A draw depends on
    the question's own seed, never on its neighbours in the batch.
    """

    def __init__(self, model: VLM, prompter: Prompter, *, batch: int, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0):
        self.model, self.prompter, self.batch, self.max_new_tokens = model.eval(), prompter, batch, max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self.device = next(model.projector.parameters()).device
        vocabulary = model.language.base.config.vocab_size
        self.banned = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        self.banned[len(model.language.tokenizer) :] = True  # rows that only round the embedding up have no token
        self.banned[model.image_id] = True

    @torch.inference_mode()
    def answers(self, asked: list[GenerationRequest]) -> Iterator[tuple[int, Answer]]:
        """(number of the question, its answer), batch by batch: questions of one prefix together, longest prompts first."""
        for numbers in self._batches(asked):
            yield from zip(numbers, self._decode([asked[n] for n in numbers]), strict=True)

    @torch.inference_mode()
    def stream(self, asked: GenerationRequest) -> Iterator[Answer]:
        """The answer to one question as it grows, token by token."""
        for tokens, scores in self._steps([asked]):
            yield self._answer(tokens[0], scores[0])

    def choices(self, asked: list[GenerationRequest], options: list[list[str]]) -> Iterator[tuple[int, Answer]]:
        """(number of the question, its option with the highest log-probability per token)."""
        for number, scores in enumerate(self.likelihoods(asked, options)):
            means = [total / count for total, count in scores]
            best, whole = int(np.argmax(means)), int(np.argmax([total for total, _ in scores]))
            yield number, Answer(options[number][best], means[best], options[number][whole])

    @torch.inference_mode()
    def likelihoods(self, asked: list[GenerationRequest], options: list[list[str]]) -> list[list[tuple[float, int]]]:
        """Per question and option: (log-probability of the option's tokens and the end of sequence after the prompt, their number)."""
        spelt = [[ids + [self.prompter.eos] for ids in self.prompter.tokens(texts)] for texts in options]
        pairs = [(n, ids) for n, texts in enumerate(spelt) for ids in texts]
        whole = [replace(asked[n], prompt=asked[n].prompt + ids) for n, ids in pairs]
        found: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
        for numbers in self._batches(whole):
            hidden_QTH = self._prefill([whole[n] for n in numbers])[2]
            longest = max(len(pairs[n][1]) for n in numbers)
            logprobs_QTV = self.model.language.head(hidden_QTH[:, -longest - 1 : -1]).float().log_softmax(-1)
            for row, n in enumerate(numbers):
                ids = torch.tensor(pairs[n][1], device=self.device)
                found[n] = (logprobs_QTV[row, -len(ids) :].gather(1, ids[:, None]).sum().item(), len(ids))
        scored = iter(found)
        return [[next(scored) for _ in texts] for texts in spelt]

    def _batches(self, asked: list[GenerationRequest]) -> Iterator[list[int]]:
        """Numbers of questions with equally many images, those of one prefix together."""
        order = sorted(range(len(asked)), key=lambda n: (len(asked[n].images), asked[n].prefix, len(asked[n].prompt)))
        for count in sorted({len(question.images) for question in asked}):
            alike = [n for n in order if len(asked[n].images) == count]
            for at in range(0, len(alike), self.batch):
                yield alike[at : at + self.batch]

    def _decode(self, asked: list[GenerationRequest]) -> list[Answer]:
        *_, (tokens, scores) = self._steps(asked)
        return [self._answer(*pair) for pair in zip(tokens, scores, strict=True)]

    def _steps(self, asked: list[GenerationRequest]) -> Iterator[tuple[list[list[int]], list[list[float]]]]:
        """The tokens of every answer and their log-probabilities, the same growing lists after each step."""
        cache, lengths_Q, hidden_QTH, width = self._prefill(asked)
        logits_QV = self.model.language.head(hidden_QTH[:, -1])
        draws = [np.random.default_rng([question.seed, 0]) for question in asked]
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
            next_Q = self._choose(logprobs_QV, [draws[number] for number in alive.tolist()])
            scores_Q = logprobs_QV.gather(1, next_Q[:, None])[:, 0]
            for number, token, score in zip(alive.tolist(), next_Q.tolist(), scores_Q.tolist(), strict=True):
                tokens[number].append(token)
                scores[number].append(score)
            yield tokens, scores
            keep = (next_Q != self.prompter.eos).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < len(alive):  # finished questions leave the batch
                cache.batch_select_indices(keep)
                alive, next_Q, position_Q, seen_QT = alive[keep], next_Q[keep], position_Q[keep], seen_QT[keep]
            seen_QT = torch.cat([seen_QT, torch.ones_like(seen_QT[:, :1])], 1)
            hidden_QTH = self._step(self.model.language.embed(next_Q[:, None]), position_Q[:, None], seen_QT, cache)
            logits_QV = self.model.language.head(hidden_QTH[:, -1])
            position_Q = position_Q + 1

    def _prefill(self, asked: list[GenerationRequest]) -> tuple[DynamicCache, Tensor, Tensor, int]:
        """Images once per distinct prefix, then every question on its copy of the prefix.

        Gives the cache, the prompt lengths, the hidden states h_QTH of the left-padded prompts, and the width of prefix and prompt.
        """
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
        return cache, lengths_Q, self._step(self.model.language.embed(ids_QT), positions_QT, seen_QT, cache), prefix + longest

    def _step(self, e_BTH: Tensor, position_ids_BT: Tensor | None, seen_BT: Tensor | None, cache: DynamicCache) -> Tensor:
        """Hidden states of these tokens; the cache grows."""
        return self.model.language.body(
            inputs_embeds=e_BTH, position_ids=position_ids_BT, attention_mask=seen_BT, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def _choose(self, logprobs_QV: Tensor, draws: list[np.random.Generator]) -> Tensor:
        """The next token of each question."""
        if self.temperature == 0:
            return logprobs_QV.argmax(-1)
        sorted_QV, order_QV = (logprobs_QV / self.temperature).softmax(-1).sort(descending=True)
        mass_QV = sorted_QV.cumsum(-1)
        sorted_QV[mass_QV - sorted_QV >= self.top_p] = 0  # the token that crosses top_p stays
        mass_QV = sorted_QV.double().cumsum(-1)
        drawn_Q1 = torch.tensor([[draw.random()] for draw in draws], dtype=torch.float64, device=self.device) * mass_QV[:, -1:]
        return order_QV.gather(1, torch.searchsorted(mass_QV, drawn_Q1, right=True).clamp(max=mass_QV.shape[1] - 1))[:, 0]

    def _answer(self, tokens: list[int], scores: list[float]) -> Answer:
        ended = tokens and tokens[-1] == self.prompter.eos
        text = self.model.language.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        cut = not ended and len(tokens) == self.max_new_tokens
        return Answer(text.strip(), sum(scores) / max(len(scores), 1), cut=cut)
