"""Stored language models: any LLaMA-family causal LM of transformers, with special ids that its tokenizer confirms."""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizerFast, PreTrainedModel, PreTrainedTokenizerBase

from src.data.prompt import IMAGE
from src.model.weight_files import (
    INDEX_FILES,
    UNVERIFIED,
    WEIGHT_FILES,
    find_file,
    identity_of,
    one_line,
    raise_mismatches,
    read_json,
    weight_files,
)
from src.runtime.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
NOT_LLAMA = ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")  # of Gemma 2, Granite, Cohere


def load_language(path: str, *, revision: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer from a folder or hub id, with an `<image>` token and ids that agree.

    Embedding and head grow to a multiple of 64 rows; new rows are zero, so no random row stands in a frozen matrix.
    `bos`, `eos` and `pad` of config and generation config follow the tokenizer, because PMC-LLaMA's config (bos 0, eos 1,
    pad -1: ids of an early port) contradicts its own vocabulary (<s> 1, </s> 2). Code that travels with weights is never run.
    """
    # Looked for by hand: without its vocabulary file transformers builds a tokenizer of three tokens and says nothing.
    for names in (["config.json"], TOKENIZER_FILES):
        find_file(path, names, revision=revision, key="language.path")
    weight_files(path, [*INDEX_FILES, *WEIGHT_FILES], revision=revision, key="language.path")  # a download shows its progress
    tokenizer = load_tokenizer(path, revision=revision, key="language.path")
    try:
        config = AutoConfig.from_pretrained(path, revision=_pinned(revision), trust_remote_code=False)
        _take(config, {name: id for name, id in _ids(tokenizer).items() if id is None or id < config.vocab_size})
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=_pinned(revision),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
            trust_remote_code=False,
        )
    except Exception as error:
        raise UserError(f"language.path={path} cannot be loaded as a causal language model: {one_line(error)}") from None
    lacking, misshapen = [str(name) for name in info["missing_keys"]], [str(key[0]) for key in info["mismatched_keys"]]
    raise_mismatches({"lacks": lacking, "has unknown": info["unexpected_keys"], "has wrong shapes:": misshapen}, origin=path)
    if not (hasattr(model, "model") and hasattr(model, "lm_head")):
        raise UserError(f"language.path={path} is a {type(model).__name__}; a LLaMA-family model (`model` and `lm_head`) is needed")
    own = [f"{key}={getattr(config, key)}" for key in NOT_LLAMA if getattr(config, key, None) not in (None, 1.0)]
    if own or not model._supports_attention_backend:
        found = ", ".join(own) or "an attention of its own"
        raise UserError(f"language.path={path} is a {type(model).__name__} with {found}, which LLaMA has not and training would leave out")
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    _grow(model, len(tokenizer))
    _take(model.config, _ids(tokenizer))
    _agree(model, tokenizer)
    return model, tokenizer


def language_identity(path: str, *, revision: str) -> dict[str, str]:
    """{id, revision, sha256} of the frozen weights; for several files the sha256 of their names and sha256s."""
    return identity_of(path, weight_files(path, [*INDEX_FILES, *WEIGHT_FILES], revision=revision, key="language.path"), revision=revision)


def load_tokenizer(path: str, *, revision: str, key: str) -> PreTrainedTokenizerBase:
    """`key` is the config key to name in an error."""
    described = read_json(find_file(path, ["tokenizer_config.json"], revision=revision, key=key))
    kind: Any = AutoTokenizer
    extra: dict[str, Any] = {"trust_remote_code": False}
    if described.get("tokenizer_class") == "LLaMATokenizer" or described.get("eos_token") == "":
        # PMC-LLaMA: a class name that was never released and empty special tokens, on which AutoTokenizer recurses for ever.
        kind, extra = LlamaTokenizerFast, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    try:
        tokenizer = kind.from_pretrained(path, revision=_pinned(revision), **extra)
    except Exception as error:
        raise UserError(f"the tokenizer of {key}={path} cannot be loaded: {one_line(error)}") from None
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token is None and vocabulary.get("<s>") == 1 and vocabulary.get("</s>") == 2:
        tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {key}={path} names no end-of-sequence token, so answers could never end")
    if tokenizer.bos_token is None:  # Qwen's: the end of a sequence stands before the next one
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _take(config: Any, ids: dict[str, int | None]) -> None:
    for name, value in ids.items():
        setattr(config, name, value)


def _agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The generation config takes the tokenizer's ids too; one that lists several ends keeps them."""
    ends = model.generation_config.eos_token_id
    _take(model.generation_config, _ids(tokenizer))
    if isinstance(ends, list) and tokenizer.eos_token_id in ends:
        model.generation_config.eos_token_id = ends


def _grow(model: PreTrainedModel, tokens: int) -> None:
    before = model.get_input_embeddings().weight.shape[0]
    after = 64 * math.ceil(max(before, tokens) / 64)
    if after == before:
        return
    model.resize_token_embeddings(after, mean_resizing=False)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        nn.init.zeros_(part.weight[before:])


def _pinned(revision: str) -> str:
    return "main" if revision == UNVERIFIED else revision
