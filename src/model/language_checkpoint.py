"""Checkpoints of language models: causal LMs of the LLaMA family in the format of transformers, with their tokenizers."""

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
# Operations of Gemma 2, Granite and Cohere that LLaMA lacks.
UNSUPPORTED_KEYS = ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")


def load_language(path: str, *, revision: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer from a folder or hub id, with an added `<image>` token.

    Embedding and head are padded with zeros to a multiple of 64 rows, so that these frozen matrices hold no random rows.
    `bos`, `eos` and `pad` of config and generation config follow the tokenizer, because PMC-LLaMA's config (bos 0, eos 1, pad -1: ids
    of an early port) contradicts its own vocabulary (<s> 1, </s> 2). Code in a repository is never run.

    Raises `UserError` for missing files, weights that do not fit, and models that compute what LLaMA does not.
    """
    # transformers does not report a missing vocabulary file: it builds a tokenizer of three tokens.
    for names in (["config.json"], TOKENIZER_FILES):
        find_file(path, names, revision=revision, key="language.path")
    weight_files(path, [*INDEX_FILES, *WEIGHT_FILES], revision=revision, key="language.path")  # downloads with a progress bar
    tokenizer = load_tokenizer(path, revision=revision, key="language.path")
    try:
        config = AutoConfig.from_pretrained(path, revision=_pinned(revision), trust_remote_code=False)
        _set_ids(config, {name: id for name, id in _special_ids(tokenizer).items() if id is None or id < config.vocab_size})
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=_pinned(revision),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with the names of the tensors
            trust_remote_code=False,
        )
    except Exception as error:
        raise UserError(f"language.path={path} cannot be loaded as a causal language model: {one_line(error)}") from None
    missing, mismatched = [str(name) for name in info["missing_keys"]], [str(key[0]) for key in info["mismatched_keys"]]
    raise_mismatches({"lacks": missing, "has unknown": info["unexpected_keys"], "has wrong shapes:": mismatched}, origin=path)
    if not (hasattr(model, "model") and hasattr(model, "lm_head")):
        raise UserError(f"language.path={path} is a {type(model).__name__}; a LLaMA-family model (`model` and `lm_head`) is needed")
    unsupported = [f"{key}={getattr(config, key)}" for key in UNSUPPORTED_KEYS if getattr(config, key, None) not in (None, 1.0)]
    if unsupported or not model._supports_attention_backend:
        reason = ", ".join(unsupported) or "its own attention"
        raise UserError(
            f"language.path={path} is a {type(model).__name__} with {reason}, which training would ignore; give a model that computes "
            "what LLaMA computes"
        )
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    _pad_vocabulary(model, len(tokenizer))
    _set_ids(model.config, _special_ids(tokenizer))
    _set_generation_ids(model, tokenizer)
    return model, tokenizer


def language_identity(path: str, *, revision: str) -> dict[str, str]:
    """{id, revision, sha256} of the frozen weights (see `identity_of`)."""
    return identity_of(path, weight_files(path, [*INDEX_FILES, *WEIGHT_FILES], revision=revision, key="language.path"), revision=revision)


def load_tokenizer(path: str, *, revision: str, key: str) -> PreTrainedTokenizerBase:
    """A tokenizer with bos, eos and pad tokens. `key` is the config key that an error names."""
    settings = read_json(find_file(path, ["tokenizer_config.json"], revision=revision, key=key))
    tokenizer_class: Any = AutoTokenizer
    extra: dict[str, Any] = {"trust_remote_code": False}
    if settings.get("tokenizer_class") == "LLaMATokenizer" or settings.get("eos_token") == "":
        # PMC-LLaMA names a class that was never released and empty special tokens, on which AutoTokenizer recurses forever.
        tokenizer_class, extra = LlamaTokenizerFast, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    try:
        tokenizer = tokenizer_class.from_pretrained(path, revision=_pinned(revision), **extra)
    except Exception as error:
        raise UserError(f"the tokenizer of {key}={path} cannot be loaded: {one_line(error)}") from None
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token is None and vocabulary.get("<s>") == 1 and vocabulary.get("</s>") == 2:
        tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {key}={path} names no end-of-sequence token, so answers would never end")
    if tokenizer.bos_token is None:  # Qwen: the end of a sequence precedes the next sequence
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _set_ids(config: Any, ids: dict[str, int | None]) -> None:
    for name, value in ids.items():
        setattr(config, name, value)


def _set_generation_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets the ids of the generation config too. A list of several eos ids is kept."""
    eos = model.generation_config.eos_token_id
    _set_ids(model.generation_config, _special_ids(tokenizer))
    if isinstance(eos, list) and tokenizer.eos_token_id in eos:
        model.generation_config.eos_token_id = eos


def _pad_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    before = model.get_input_embeddings().weight.shape[0]
    after = 64 * math.ceil(max(before, num_tokens) / 64)
    if after == before:
        return
    model.resize_token_embeddings(after, mean_resizing=False)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        nn.init.zeros_(part.weight[before:])


def _pinned(revision: str) -> str:
    return "main" if revision == UNVERIFIED else revision
