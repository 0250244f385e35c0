"""Trains a small LLaMA and its tokenizer on the texts of the phantoms; saved as a Hugging Face folder.

It sees captions, questions with answers, and abstracts, but no images. So it learns the wording of answers, not which one is right.
"""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from src.data.prompt import prompt_answer_pairs
from src.data.shards import Shards
from src.runtime.progress import Progress

SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY = 1024
TOKENS, ROWS, RATE = 128, 16, 3e-3  # tokens per sequence, sequences per step, learning rate


def pretrain(out: Path, sources: list[Shards], *, steps: int, seed: int) -> None:
    """Writes `out` (config, safetensors, tokenizer)."""
    texts = [prompt_answer_pairs(all_shards.text(row)) for all_shards in sources for row in all_shards.rows("train").tolist()]
    tokenizer = train_tokenizer([part for turns in texts for turn in turns for part in turn])
    stream_T = token_stream(tokenizer, texts, seed=seed)
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPE, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    with Progress(range(steps), desc="language stand-in", unit="step") as progress:
        for step in progress:
            starts = torch.randint(len(stream_T) - TOKENS, (ROWS,))
            input_ids_BT = torch.stack([stream_T[start : start + TOKENS] for start in starts])
            loss = model(input_ids=input_ids_BT, labels=input_ids_BT, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer with LLaMA's conventions: `<unk>` 0, `<s>` 1, `</s>` 2, and a mark for a space at the beginning of a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list(string.printable[:95] + "\n"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[list[tuple[str, str]]], *, seed: int) -> Tensor:
    """The ids (T,) of all texts in random order, each `<s> prompt answer </s> ...` as in training."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    flat = iter(tokenizer([part for n in order for turn in texts[n] for part in turn], add_special_tokens=False).input_ids)
    ids: list[int] = []
    for n in order:
        ids.append(tokenizer.bos_token_id)
        for _ in texts[n]:
            ids += [*next(flat), *next(flat), tokenizer.eos_token_id]
    return torch.tensor(ids)
