"""Answers of the model: greedy, sampled, or the most likely of given options. Batched; questions on the same images share their prefix.

Legend: Q unfinished questions, M distinct prefixes, T tokens, H language width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from src.data.prompt import Prompter
from src.data.record import Record
from src.model.vlm import VLM


@dataclass
class GenerationRequest:
    """One question: its images (uint8, 3HW each; none for text-only) and its tokens, up to the images and after them."""

    images: list[Tensor]
    prefix_ids: list[int]
    prompt: list[int]
    prefix: str  # an id of the images: equal for questions on the same images
    seed: int = 0  # of this question's random numbers, when sampling


@dataclass
class Answer:
    text: str
    confidence: float  # mean log-probability of its tokens
    unnormalised: str = ""  # the option with the highest total log-probability, which disfavours long options
    truncated: bool = False  # it did not end within max_new_tokens

    def line(self) -> dict:
        """The columns of a predictions file that describe an answer."""
        line = {"prediction": self.text, "confidence": round(self.confidence, 6)}
        line |= {"prediction_unnormalised": self.unnormalised} if self.unnormalised else {}
        return line | {"cut": True} if self.truncated else line


def make_request(record: Record, *, images: list[Tensor], prefix: str, prompter: Prompter, max_new_tokens: int) -> GenerationRequest:
    """The last question of a record with the turns before it, as in training, truncated to the same token budget."""
    prefix_ids, prompt = prompter.question_ids(record, len(images), max_new_tokens=max_new_tokens)
    return GenerationRequest(images, prefix_ids, prompt, prefix)


class Generator:
    """Decoding on the device of the model. `batch` limits the number of questions that decode at once.

    `temperature` 0 is greedy. Above 0, tokens are sampled from the smallest set whose probability reaches `top_p`. The random numbers
    of a question depend on its own seed only, not on the other questions of the batch.
    """

    def __init__(self, model: VLM, prompter: Prompter, *, batch: int, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0):
        self.model, self.prompter, self.batch, self.max_new_tokens = model.eval(), prompter, batch, max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self.device = next(model.projector.parameters()).device
        vocabulary = model.language.base.config.vocab_size
        self.banned = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        self.banned[len(model.language.tokenizer) :] = True  # padding of the embedding matrix: these rows have no token
        self.banned[model.image_id] = True
        self.ends = torch.tensor(prompter.ends, device=self.device)

    @torch.inference_mode()
    def answers(self, requests: list[GenerationRequest]) -> Iterator[tuple[int, Answer]]:
        """(index of the request, its answer), in the order in which batches finish."""
        for indices in self._batches(requests):
            yield from zip(indices, self._decode([requests[n] for n in indices]), strict=True)

    @torch.inference_mode()
    def stream(self, request: GenerationRequest) -> Iterator[Answer]:
        """The unfinished answer to one request after every token."""
        for tokens, logprobs in self._steps([request]):
            yield self._answer(tokens[0], logprobs[0])

    def choices(self, requests: list[GenerationRequest], options: list[list[str]]) -> Iterator[tuple[int, Answer]]:
        """(index of the request, its option with the highest log-probability per token)."""
        for index, scores in enumerate(self.likelihoods(requests, options)):
            means = [total / count for total, count in scores]
            best, best_total = int(np.argmax(means)), int(np.argmax([total for total, _ in scores]))
            yield index, Answer(options[index][best], means[best], options[index][best_total])

    def chosen_or_free(self, requests: list[GenerationRequest], options: list[list[str]]) -> Iterator[tuple[int, Answer]]:
        """`choices` for requests with options, `answers` for the others."""
        chosen, free = ([n for n, texts in enumerate(options) if bool(texts) is wanted] for wanted in (True, False))
        for n, answer in self.choices([requests[n] for n in chosen], [options[n] for n in chosen]):
            yield chosen[n], answer
        for n, answer in self.answers([requests[n] for n in free]):
            yield free[n], answer

    @torch.inference_mode()
    def likelihoods(self, requests: list[GenerationRequest], options: list[list[str]]) -> list[list[tuple[float, int]]]:
        """Per request and option: (log-probability of the option's tokens and its end after the prompt, their number)."""
        option_ids = [self.prompter.answer_ids(texts) for texts in options]
        pairs = [(n, ids) for n, texts in enumerate(option_ids) for ids in texts]
        complete = [replace(requests[n], prompt=requests[n].prompt + ids) for n, ids in pairs]
        scores: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
        for indices in self._batches(complete):
            hidden_QTH = self._prefill([complete[n] for n in indices])[2]
            longest = max(len(pairs[n][1]) for n in indices)
            logprobs_QTV = self.model.language.head(hidden_QTH[:, -longest - 1 : -1]).float().log_softmax(-1)
            for q, n in enumerate(indices):
                ids = torch.tensor(pairs[n][1], device=self.device)
                scores[n] = (logprobs_QTV[q, -len(ids) :].gather(1, ids[:, None]).sum().item(), len(ids))
        in_order = iter(scores)
        return [[next(in_order) for _ in texts] for texts in option_ids]

    def _batches(self, requests: list[GenerationRequest]) -> Iterator[list[int]]:
        """Indices of requests with equally long prefixes of equally many images; those with the same prefix are next to each other."""
        shapes = [(len(request.images), len(request.prefix_ids)) for request in requests]
        order = sorted(range(len(requests)), key=lambda n: (shapes[n], *_prefix_key(requests[n]), len(requests[n].prompt)))
        for shape in sorted(set(shapes)):
            group = [n for n in order if shapes[n] == shape]
            for start in range(0, len(group), self.batch):
                yield group[start : start + self.batch]

    def _decode(self, requests: list[GenerationRequest]) -> list[Answer]:
        *_, (tokens, logprobs) = self._steps(requests)
        return [self._answer(*pair) for pair in zip(tokens, logprobs, strict=True)]

    def _steps(self, requests: list[GenerationRequest]) -> Iterator[tuple[list[list[int]], list[list[float]]]]:
        """After each step: the tokens of every answer and their log-probabilities, in lists that grow in place."""
        cache, lengths_Q, hidden_QTH, width = self._prefill(requests)
        logits_QV = self.model.language.head(hidden_QTH[:, -1])
        generators = [np.random.default_rng([request.seed, 0]) for request in requests]
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        unfinished_Q = torch.arange(len(requests), device=self.device)
        prefix = len(requests[0].prefix_ids)
        longest = width - prefix
        # Prompts are padded on the left, between the shared prefix and the question.
        attention_mask_QT = torch.ones(len(requests), width, dtype=torch.long, device=self.device)
        is_padding_QT = torch.arange(longest, device=self.device)[None] < (longest - lengths_Q)[:, None]
        attention_mask_QT[:, prefix:][is_padding_QT] = 0
        position_Q = prefix + lengths_Q
        for _ in range(self.max_new_tokens):
            logprobs_QV = logits_QV.float().masked_fill(self.banned, -torch.inf).log_softmax(-1)
            next_Q = self._choose(logprobs_QV, [generators[n] for n in unfinished_Q.tolist()])
            next_logprobs_Q = logprobs_QV.gather(1, next_Q[:, None])[:, 0]
            for n, token, logprob in zip(unfinished_Q.tolist(), next_Q.tolist(), next_logprobs_Q.tolist(), strict=True):
                tokens[n].append(token)
                logprobs[n].append(logprob)
            yield tokens, logprobs
            keep = (~torch.isin(next_Q, self.ends)).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < len(unfinished_Q):  # finished questions leave the batch
                cache.batch_select_indices(keep)
                unfinished_Q, next_Q, position_Q = unfinished_Q[keep], next_Q[keep], position_Q[keep]
                attention_mask_QT = attention_mask_QT[keep]
            attention_mask_QT = torch.cat([attention_mask_QT, torch.ones_like(attention_mask_QT[:, :1])], 1)
            hidden_QTH = self._forward(self.model.language.embed(next_Q[:, None]), position_Q[:, None], attention_mask_QT, cache)
            logits_QV = self.model.language.head(hidden_QTH[:, -1])
            position_Q = position_Q + 1

    def _prefill(self, requests: list[GenerationRequest]) -> tuple[DynamicCache, Tensor, Tensor, int]:
        """Computes each distinct prefix once, then every prompt on its copy of the prefix.

        Returns the cache, the prompt lengths, the hidden states h_QTH of the left-padded prompts, and the width of prefix and prompt.
        """
        first_request = {_prefix_key(request): n for n, request in reversed(list(enumerate(requests)))}
        prefix_index = {prefix: m for m, prefix in enumerate(first_request)}
        ids_MT = torch.tensor([requests[n].prefix_ids for n in first_request.values()], device=self.device)
        pixels = [image for n in first_request.values() for image in requests[n].images]
        images_NCHW = torch.stack(pixels).to(self.device) if pixels else torch.empty(0, device=self.device)
        cache = DynamicCache(config=self.model.language.base.config)
        self._forward(self.model.embed(ids_MT, images_NCHW), None, None, cache)
        cache.batch_select_indices(torch.tensor([prefix_index[_prefix_key(request)] for request in requests], device=self.device))

        lengths_Q = torch.tensor([len(request.prompt) for request in requests], device=self.device)
        longest, prefix = int(lengths_Q.max()), ids_MT.shape[1]
        padded = [[self.prompter.eos] * (longest - len(request.prompt)) + request.prompt for request in requests]
        ids_QT = torch.tensor(padded, device=self.device)
        offset_QT = torch.arange(longest, device=self.device)[None] - (longest - lengths_Q)[:, None]  # below 0 on padding
        prefix_mask_QT = torch.ones(len(requests), prefix, dtype=torch.long, device=self.device)
        attention_mask_QT = torch.cat([prefix_mask_QT, (offset_QT >= 0).long()], 1)
        position_ids_QT = prefix + offset_QT.clamp(min=0)
        hidden_QTH = self._forward(self.model.language.embed(ids_QT), position_ids_QT, attention_mask_QT, cache)
        return cache, lengths_Q, hidden_QTH, prefix + longest

    def _forward(self, e_BTH: Tensor, position_ids_BT: Tensor | None, attention_mask_BT: Tensor | None, cache: DynamicCache) -> Tensor:
        """Hidden states of these tokens, which are added to the cache."""
        return self.model.language.body(
            inputs_embeds=e_BTH, position_ids=position_ids_BT, attention_mask=attention_mask_BT, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def _choose(self, logprobs_QV: Tensor, generators: list[np.random.Generator]) -> Tensor:
        """The next token of each question."""
        if self.temperature == 0:
            return logprobs_QV.argmax(-1)
        sorted_QV, order_QV = (logprobs_QV / self.temperature).softmax(-1).sort(descending=True)
        cumulative_QV = sorted_QV.cumsum(-1)
        sorted_QV[cumulative_QV - sorted_QV >= self.top_p] = 0  # the token that crosses top_p stays
        cumulative_QV = sorted_QV.double().cumsum(-1)
        uniform_Q1 = torch.tensor([[generator.random()] for generator in generators], dtype=torch.float64, device=self.device)
        rank_Q1 = torch.searchsorted(cumulative_QV, uniform_Q1 * cumulative_QV[:, -1:], right=True)
        return order_QV.gather(1, rank_Q1.clamp(max=cumulative_QV.shape[1] - 1))[:, 0]

    def _answer(self, tokens: list[int], logprobs: list[float]) -> Answer:
        ended = tokens and tokens[-1] in self.prompter.ends
        text = self.model.language.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        truncated = not ended and len(tokens) == self.max_new_tokens
        return Answer(text.strip(), sum(logprobs) / max(len(logprobs), 1), truncated=truncated)


def _prefix_key(request: GenerationRequest) -> tuple[str, tuple[int, ...]]:
    """Equal for requests whose prefix is computed once. A chat template may have a system text before the images."""
    return request.prefix, tuple(request.prefix_ids)
