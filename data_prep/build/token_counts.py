"""Counts the tokens of record texts during a build, with the tokenizer that training will load."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from data_prep.build.chunking import record_texts
from src.data.record import Record
from src.runtime.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NOT_COUNTED = -1


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as a file that a worker loads in 20 MB; loading it through transformers takes 700 MB."""

    identity: dict[str, str]  # manifest entry: id, revision, sha256 of tokenizer.json or tokenizer.model
    file: Path


@contextmanager
def tokenizer_file(path: str) -> Iterator[TokenizerFile | None]:
    """Exports the fast tokenizer of a folder or hub id; None if `path` is empty. The file is deleted on exit.

    Raises `UserError` if the tokenizer cannot be loaded or has no fast version.
    """
    if not path:
        yield None
        return
    from src.model.language_checkpoint import TOKENIZER_FILES, load_tokenizer
    from src.model.weight_files import UNVERIFIED, find_file, identity_of  # imports torch and transformers, about 5 s

    source = find_file(path, TOKENIZER_FILES, revision=UNVERIFIED, key="tokenizer")
    tokenizer = load_tokenizer(path, revision=UNVERIFIED, key="tokenizer")
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer={path}: {type(tokenizer).__name__} has no fast version; give another folder or hub id")
    with TemporaryDirectory(prefix="openmedq-") as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        yield TokenizerFile(identity_of(path, [source], revision=UNVERIFIED), file)


def count_tokens(records: list[Record], file: Path | None) -> list[int]:
    """Tokens per record: the sum over its questions and answers, each tokenised on its own, or the tokens of its caption.

    Prompt words, answer options, image placeholders and special tokens are not counted. `NOT_COUNTED` without a tokenizer.
    """
    if file is None:
        return [NOT_COUNTED] * len(records)
    texts = [record_texts(record) for record in records]
    encodings = iter(_load_tokenizer(file).encode_batch_fast([text for group in texts for text in group], add_special_tokens=False))
    return [sum(len(next(encodings)) for _ in group) for group in texts]


@cache
def _load_tokenizer(file: Path) -> "Tokenizer":
    """Loads the tokenizer once per process."""
    from tokenizers import Tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the process pool is parallel already
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
