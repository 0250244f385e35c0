"""Tokens of the text of records, counted while shards are built by the tokenizer that training would load."""

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
    """A tokenizer: what the manifest says of it, and a file of it that a worker reads in 20 MB, where transformers takes 700."""

    identity: dict[str, str]  # id, revision, sha256 of tokenizer.json or tokenizer.model
    file: Path


@contextmanager
def tokenizer_file(path: str) -> Iterator[TokenizerFile | None]:
    """Of a folder or hub id; nothing where `path` is empty. Raises `UserError`."""
    if not path:
        yield None
        return
    from src.model.language_checkpoint import TOKENIZER_FILES, load_tokenizer
    from src.model.weight_files import UNVERIFIED, find_file, identity_of  # torch and transformers: five seconds that only this needs

    source = find_file(path, TOKENIZER_FILES, revision=UNVERIFIED, key="tokenizer")
    tokenizer = load_tokenizer(path, revision=UNVERIFIED, key="tokenizer")
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer={path} is a {type(tokenizer).__name__}, which has no fast version; give another folder or hub id")
    with TemporaryDirectory(prefix="openmedq-") as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        yield TokenizerFile(identity_of(path, [source], revision=UNVERIFIED), file)


def count_tokens(records: list[Record], file: Path | None) -> list[int]:
    """Tokens per record: of each question and each answer by itself, or of the caption, added up; without the words of the prompt,
    answer options, placeholders of images and special tokens. `NOT_COUNTED` where there is no tokenizer."""
    if file is None:
        return [NOT_COUNTED] * len(records)
    parts = [record_texts(record) for record in records]
    found = iter(_loaded(file).encode_batch_fast([text for part in parts for text in part], add_special_tokens=False))
    return [sum(len(next(found)) for _ in part) for part in parts]


@cache
def _loaded(file: Path) -> "Tokenizer":
    """Once per process."""
    from tokenizers import Tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes of the pool are the parallel part
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
