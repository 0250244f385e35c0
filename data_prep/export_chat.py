"""Writes the records of one source as chat files, which the reader `chat` turns into equal records."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data_prep.readers.chat import TOKEN
from data_prep.readers.own_data import RECORD_KEYS
from src.data.credentialed import is_credentialed
from src.data.record import PHANTOM_MARKER, SPLITS, Record
from src.data.shards import Shards
from src.runtime.arguments import parse_arguments
from src.runtime.atomic_file import explain_full_disk
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.progress import Progress

FORMS = {"messages": ("role", "content", "user", "assistant"), "conversations": ("from", "value", "human", "gpt")}


@dataclass
class ExportConfig:
    """Writes the records of one source as chat files: TO/{train,val,test}.jsonl, and the images in TO/images.

    python -m data_prep.export_chat source=slake out=data/shards to=data/raw/slake_chat

    source  source to export
    out     folder with its shards OUT/<source>
    to      folder to write to; it must not exist
    form    messages: role and content, as LLaMA-Factory, ms-swift and TRL read it (default); conversations: from and value, as LLaVA does
    """

    source: str
    out: Path
    to: Path
    form: str = "messages"


@report_user_errors
def main(args: list[str]) -> None:
    export_chat(parse_arguments(ExportConfig, args))


def export_chat(config: ExportConfig) -> None:
    if config.form not in FORMS:
        raise UserError(f"form={config.form!r}: unknown form{suggest(config.form, FORMS)}")
    if config.to.exists():
        raise UserError(f"to={config.to}: already exists; remove it, or give another folder")
    shards = Shards(config.out / config.source)
    if is_credentialed(config.source, shards.manifest):
        raise UserError(f"source={config.source}: credentialed; its texts stay in its shards, because a copy would be open")
    partial = config.to.with_name(f".{config.to.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    try:
        with explain_full_disk(config.source, config.to), Progress(total=len(shards), unit="record", desc=config.source) as progress:
            _write_records(shards, partial, config.form, progress)
            partial.rename(config.to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"wrote {len(shards):,} records to {config.to}; licence: {shards.manifest['licence']}")


def _write_records(shards: Shards, folder: Path, form: str, progress: Progress) -> None:
    (folder / "images").mkdir(parents=True)
    if shards.manifest["phantom"]:
        (folder / PHANTOM_MARKER).write_text("{}")
    for split in SPLITS:
        if not (rows := shards.rows(split).tolist()):
            continue
        with (folder / f"{split}.jsonl").open("wb") as file:
            for row in rows:
                file.write(json.dumps(to_chat(shards[row], folder, form), ensure_ascii=False).encode() + b"\n")
                progress.update()


def to_chat(record: Record, folder: Path, form: str) -> dict:
    """The row of a record. Its images are written to `folder/images` under the hash of their bytes, so that each is stored once.

    A system text is the first turn of `messages`. Beside `conversations` it is a key, because LLaVA's training code fails at a turn
    `system` (`preprocess_v1` of llava/train/train.py knows `human` and `gpt`); LLaMA-Factory reads that key as its column `system`.
    """
    names = []
    for image in record.images:
        names.append(f"images/{xxhash.xxh3_128_hexdigest(image)}.jpg")
        if not (folder / names[-1]).exists():
            (folder / names[-1]).write_bytes(image)
    role, text, user, assistant = FORMS[form]
    tokens = "\n".join([TOKEN] * len(names))
    texts = [part for turn in record.turns or [("", record.caption)] for part in turn]
    texts[0] = f"{tokens}\n{texts[0]}".strip()
    turns = [{role: (user, assistant)[n % 2], text: part} for n, part in enumerate(texts)]
    meta = dict(record.meta)
    if form == "messages" and record.system:
        turns.insert(0, {role: "system", text: meta.pop("system")})
    row = {
        "id": record.meta.get("id", record.key),  # the build stores an id that is no file name in `meta`
        "images": names,
        form: turns,
        **{name: getattr(record, name) for name in ("choices", "references", "type", "group", "licence")},
    }
    clash = [name for name in record.meta if name in RECORD_KEYS and name != "id"]
    if clash:
        raise UserError(f"record '{record.key}': its meta has the key '{clash[0]}' of a chat row; rename it in the raw data")
    return {name: value for name, value in (row | meta).items() if value or name in meta}


if __name__ == "__main__":
    main(sys.argv[1:])
