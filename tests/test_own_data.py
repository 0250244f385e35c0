"""Own data in the forms that users have: tables, conversations, class folders, and what is wrong with them."""

import base64
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import sources
from data_prep.build.source import BuildConfig
from data_prep.export_chat import ExportConfig, export_chat
from data_prep.readers import READERS
from data_prep.readers.chat import Chat, parse_chat
from data_prep.readers.own_data import TYPE_NOTE
from data_prep.readers.rows import InvalidRow, Note
from data_prep.shards import build_all, layout_notes, main
from src.classification.reader import read_dataset
from src.data.prompt import prompt_answer_pairs
from src.data.record import SPLITS, Record, to_json
from src.data.shards import Shards
from src.runtime.errors import UserError
from tests.fixtures import jpeg

RNG = np.random.default_rng(0)
IMAGES = [jpeg(RNG) for _ in range(3)]
ROWS = [
    {"id": f"q{n}", "image": f"{n}.jpg", "question": f"What is shown in {n}?", "answer": f"organ; {n}", "group": f"p{n}", "site": "A"}
    for n in range(3)
]


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def put_lines(path: Path, rows: list[dict]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_images(folder: Path) -> None:
    for n, image in enumerate(IMAGES):
        put(folder / f"{n}.jpg", image)


def build(raw: Path, name: str = "own", **settings) -> Shards:
    out = raw.parent / f"out-{name}"
    build_all(BuildConfig(**{"sources": [name], "raw": raw, "out": out, "workers": 1, "quarantine_limit": 1, **settings}))
    return Shards(out / name)


def rows_of(raw: Path, split: str = "train", name: str = "own") -> list:
    entry = sources.find_source(name, raw)
    return list(READERS[entry.reader](raw / name, split, entry))


def data_uri(n: int) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(IMAGES[n]).decode()}"


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def conversations(row: dict) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{row['question']}"}, {"from": "gpt", "value": row["answer"]}]
    return without(row, "question", "answer") | {"conversations": turns}


def messages(row: dict) -> dict:
    turns = [{"role": "user", "content": f"<image>{row['question']}"}, {"role": "assistant", "content": row["answer"]}]
    return without(row, "question", "answer", "image") | {"messages": turns, "images": [row["image"]]}


def parts(n: int, image: dict, listed: dict | None = None) -> dict:
    """Content as a list of parts, as TRL and OpenAI have it."""
    user = [image, {"type": "text", "text": ROWS[n]["question"]}]
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": [{"type": "text", "text": ROWS[n]["answer"]}]}]
    return without(ROWS[n], "question", "answer", "image") | {"messages": turns} | (listed or {})


def encoded(n: int) -> dict:
    return {"bytes": IMAGES[n], "path": None}


def write_table(path: Path, delimiter: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(folder: Path, rows: list[dict]) -> None:
    """As `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    put(folder / "state.json", '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    put(folder / "dataset_info.json", "{}")


def with_bytes(rows: list[dict]) -> list[dict]:
    return [row | {"image": encoded(n)} for n, row in enumerate(rows)]


FORMS = {
    "JSON lines": lambda f: put_lines(f / "train.jsonl", ROWS),
    "JSON array": lambda f: put(f / "train.json", json.dumps(ROWS, indent=1)),
    "JSON lines with another suffix": lambda f: put_lines(f / "train.json", ROWS),
    "JSON object of rows": lambda f: put(f / "train.json", json.dumps({row["id"]: row for row in ROWS})),
    "one table of any name": lambda f: put(f / "my_questions.json", json.dumps(ROWS)),
    "CSV": lambda f: write_table(f / "train.csv", ","),
    "CSV with semicolons": lambda f: write_table(f / "train.csv", ";"),
    "TSV": lambda f: write_table(f / "train.tsv", "\t"),
    "parquet with bytes": lambda f: pq.write_table(pa.Table.from_pylist(with_bytes(ROWS)), f / "train-00000-of-00001.parquet"),
    "parquet with paths": lambda f: pq.write_table(pa.Table.from_pylist(ROWS), f / "train.parquet"),
    "Arrow of one split": lambda f: write_arrow(f / "x", with_bytes(ROWS)) or [p.rename(f / p.name) for p in (f / "x").iterdir()],
    "Arrow of several splits": lambda f: write_arrow(f / "train", with_bytes(ROWS)) or put(f / "dataset_dict.json", "{}"),
    "conversations": lambda f: put(f / "llava.json", json.dumps([conversations(row) for row in ROWS])),
    "messages": lambda f: put_lines(f / "train.jsonl", [messages(row) for row in ROWS]),
    "absolute paths": lambda f: put_lines(f / "train.jsonl", [messages(row | {"image": str(f / row["image"])}) for row in ROWS]),
    "messages as parquet": lambda f: pq.write_table(
        pa.Table.from_pylist([messages(row) | {"images": [encoded(n)]} for n, row in enumerate(ROWS)]), f / "train.parquet"
    ),
    "sequences of datasets": lambda f: pq.write_table(
        pa.Table.from_pylist(
            [
                without(row, "question", "answer", "image")
                | {"image": encoded(n), "conversations": {"from": ["human", "gpt"], "value": [row["question"], row["answer"]]}}
                for n, row in enumerate(ROWS)
            ]
        ),
        f / "train.parquet",
    ),
    "parts of TRL": lambda f: put_lines(f / "train.jsonl", [parts(n, {"type": "image"}, {"images": [f"{n}.jpg"]}) for n in range(3)]),
    "parts of ms-swift": lambda f: put_lines(f / "train.jsonl", [parts(n, {"type": "image", "image": f"{n}.jpg"}) for n in range(3)]),
    "parts of OpenAI": lambda f: put_lines(
        f / "train.jsonl", [parts(n, {"type": "image_url", "image_url": {"url": data_uri(n)}}) for n in range(3)]
    ),
}


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    """The json members of the records of ROWS."""
    settings = [{"type": "finding", "group": row["group"], "meta": {"site": row["site"]}} for row in ROWS]
    turns = [[(row["question"], row["answer"])] for row in ROWS]
    records = [Record(f"q{n}", "own", "train", turns=turns[n], **settings[n]) for n in range(3)]
    return [to_json(record) for record in records]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records(tmp_path, expected, form):
    put_images(tmp_path / "own")
    FORMS[form](tmp_path / "own")
    records = rows_of(tmp_path)
    assert [row for row in records if not isinstance(row, Record)] == []
    assert [to_json(record) for record in records] == expected
    assert [record.images for record in records] == [[image] for image in IMAGES]


@pytest.mark.slow
def test_folder_saved_by_datasets_is_read(tmp_path, expected):
    import datasets

    features = datasets.Features({name: datasets.Value("string") for name in ROWS[0]} | {"image": datasets.Image()})
    saved = datasets.Dataset.from_list(with_bytes(ROWS), features=features)
    datasets.DatasetDict({"train": saved, "validation": saved}).save_to_disk(tmp_path / "own")
    assert [to_json(record) for record in rows_of(tmp_path)] == expected
    assert [record.split for record in rows_of(tmp_path, "val")] == ["val"] * 3


def test_images_are_found_in_the_folder_images_and_nowhere_outside(tmp_path):
    put_images(tmp_path / "own" / "images")
    put(tmp_path / "secret.jpg", IMAGES[0])
    rows = [{"image": name, "question": "q", "answer": "a"} for name in ("0.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "9.jpg")]
    put_lines(tmp_path / "own" / "train.jsonl", rows)
    good, *bad = rows_of(tmp_path)
    assert (good.images, good.group) == ([IMAGES[0]], "0.jpg")
    outside = "image path is not inside the raw folder"
    assert [row.reason.partition(":")[0] for row in bad] == [outside, outside, "image missing"]


def test_groups_of_images_without_a_name_are_hashes_of_their_bytes(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"image": {"bytes": image, "path": "x.png"}, "caption": "c"} for image in IMAGES]), tmp_path / "t")
    put(tmp_path / "own" / "train.parquet", (tmp_path / "t").read_bytes())
    put_lines(tmp_path / "own" / "val.jsonl", [{"image": data_uri(0), "caption": "c"}])
    groups = [record.group for split in ("train", "val") for record in rows_of(tmp_path, split)]
    assert len(set(groups)) == 3
    assert groups[0] == groups[3]


USER, ASSISTANT, SYSTEM = {"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}


def user(content) -> dict:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ASSISTANT, USER], "conversation starts with the assistant: roles assistant, user"),
        ([USER, USER, ASSISTANT], "two user turns in a row: roles user, user, assistant"),
        ([USER, ASSISTANT, ASSISTANT], "two assistant turns in a row: roles user, assistant, assistant"),
        ([USER, ASSISTANT, user("more")], "conversation ends with the user: roles user, assistant, user"),
        ([USER, {"role": "tool", "content": "x"}, ASSISTANT], "unknown role: 'tool': roles user, tool, assistant"),
        ([USER, SYSTEM, ASSISTANT], "system turn after the first turn: roles user, system, assistant"),
        ([SYSTEM], "no turn beside the system turn: roles system"),
        ([{"role": "user", "text": "q"}, ASSISTANT], "turn without role and text: found keys role, text"),
        ([user("<image><image>q"), ASSISTANT], "more image tokens than images: 2 tokens, 1 images"),
        ([USER, {"role": "assistant", "content": "a <image>"}], "image in an assistant turn"),
        (
            [user([{"type": "video", "video": "x.mp4"}]), ASSISTANT],
            "unknown part of a content: type 'video'; allowed: text, image, image_url",
        ),
        ([user(5), ASSISTANT], "content is neither a text nor a list of parts: 5"),
        ("q", "messages is not a list of turns: q"),
        ([], "messages is not a list of turns: []"),
    ],
)
def test_unusable_conversation_is_rejected_with_what_it_holds(turns, reason):
    assert parse_chat({"messages": turns}, ["a.jpg"], "key") == InvalidRow("key", reason)


@pytest.mark.parametrize(
    ("turns", "images", "question", "order", "notes"),
    [
        ([USER, ASSISTANT], ["a"], "q", ["a"], []),
        ([user("q\n<image>"), ASSISTANT], ["a"], "q", ["a"], []),
        ([user("q"), ASSISTANT], ["a", "b"], "q", ["a", "b"], []),
        ([user("q"), ASSISTANT], [], "q", [], []),
        ([user("<image>\n<image>\nq"), ASSISTANT], ["a", "b"], "q", ["a", "b"], []),
        ([USER, ASSISTANT], ["a", "b"], "q", ["a", "b"], ["fewer image tokens than images"]),
        ([user("is <image> like <image>?"), ASSISTANT], ["a", "b"], "is like ?", ["a", "b"], ["image token inside a sentence"]),
        ([user("one\n<image>\ntwo"), ASSISTANT], ["a"], "one\ntwo", ["a"], ["image token inside a sentence"]),
        ([user("q"), ASSISTANT, USER, ASSISTANT], ["a"], "q", ["a"], ["image token outside the first question"]),
        ([SYSTEM, USER, ASSISTANT], ["a"], "q", ["a"], ["system text stored in meta"]),
        (
            [user([{"type": "image"}, {"type": "image", "image": "x"}, {"type": "text", "text": "q"}]), ASSISTANT],
            ["a"],
            "q",
            ["a", "x"],
            [],
        ),
    ],
)
def test_image_tokens_are_removed_and_misplaced_ones_counted(turns, images, question, order, notes):
    chat = parse_chat({"messages": turns}, images, "key")
    assert isinstance(chat, Chat)
    assert (chat.turns[0], chat.images, chat.notes) == ((question, "a"), order, notes)
    assert all("<image>" not in text for turn in chat.turns for text in turn)


def test_build_counts_notes_and_quarantines_conversations(tmp_path, capsys):
    put_images(tmp_path / "raw" / "own")
    system = messages(ROWS[0]) | {"messages": [SYSTEM, *messages(ROWS[0])["messages"]]}
    rows = [
        system,
        conversations(ROWS[1]),
        conversations(ROWS[1] | {"question": "Another?"}),  # the id of its image again
        messages(ROWS[2] | {"image": "data:text/plain;base64,AAAA"}) | {"id": "text"},
        messages(ROWS[2] | {"image": "data:image/png;base64,AAAA"}) | {"id": "garbage"},
        messages(ROWS[2] | {"image": "data:image/png;base64,%"}) | {"id": "percent"},
        messages(ROWS[2] | {"image": "https://host/a.jpg"}) | {"id": "address"},
        messages(ROWS[2]) | {"id": "video", "videos": ["a.mp4"]},
        system | {"id": "no image", "image": "9.jpg", "images": []},
        system | {"id": "duplicate"},
        system | {"id": "other", "messages": [SYSTEM | {"content": "t"}, *messages(ROWS[0])["messages"]]},
        system | {"id": "huge", "messages": [SYSTEM | {"content": "t" * 2**20}, *messages(ROWS[0])["messages"]]},
        {"id": "keys", "image": "0.jpg", "text": "x"},
        {"image": "0.jpg", "messages": [user("<image>"), {"role": "assistant", "content": "A scan."}], "id": "caption"},
    ]
    put_lines(tmp_path / "raw" / "own" / "train.jsonl", rows)
    shards = build(tmp_path / "raw")
    records = {record.key: record for record in (shards[row] for row in range(len(shards)))}
    assert list(records) == ["q0", "q1", "q1-train-3", "other", "caption"]
    assert records["q0"].meta == {"site": "A", "system": "s"}
    assert (records["caption"].caption, records["caption"].type) == ("A scan.", "caption")
    assert shards.manifest["notes"] == {"system text stored in meta": 2, "repeated id": 1}  # of records only
    assert "own notes: 2 system text stored in meta, 1 repeated id\n" in capsys.readouterr().out
    quarantine = [json.loads(line) for line in (shards.folder / "quarantine.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in quarantine} == {
        "text": "data URI is not an image in base64: data:text/plain;base64",
        "garbage": "not an image that can be read",
        "percent": "data URI cannot be decoded: Only base64 data is allowed",
        "address": "image is an address: https://host/a.jpg; download it and give its path",
        "video": "media other than images: found key videos",
        "keys": "no key question: found id, image, text",
        "no image": "image missing: 9.jpg",
        "huge": "text too long: 1,048,603 characters; at most 1,048,576",
    }


def test_conversation_of_several_turns_supervises_every_answer(tmp_path):
    put_images(tmp_path / "own")
    turns = [{"from": "human", "value": "<image>\nWhich organ?"}, {"from": "gpt", "value": "lung"}]
    turns += [{"from": "human", "value": "Is it normal?"}, {"from": "gpt", "value": "no"}]
    put(tmp_path / "own" / "chat.json", json.dumps([{"image": "0.jpg", "conversations": turns}]))
    (record,) = rows_of(tmp_path)
    assert prompt_answer_pairs(record) == [("Question: Which organ?\nAnswer:", "lung"), ("Question: Is it normal?\nAnswer:", "no")]
    assert (record.key, record.question, record.type) == ("train-1", "Is it normal?", "presence")


@pytest.mark.slow
def test_text_of_40_mb_is_quarantined_alone(tmp_path):
    put_images(tmp_path / "raw" / "own")
    rows = [messages(ROWS[0]), messages(ROWS[1] | {"answer": "x" * 40_000_000}), messages(ROWS[2])]
    for name, content in (("train.jsonl", "\n".join(map(json.dumps, rows))), ("val.json", json.dumps([rows[1]]))):
        put(tmp_path / "raw" / "own" / name, content)
    shards = build(tmp_path / "raw")
    assert [record.key for record in shards.texts([0, 1])] == ["q0", "q2"]
    reasons = [json.loads(line)["reason"] for line in (shards.folder / "quarantine.jsonl").read_text().splitlines()]
    assert reasons == ["text too long: 40,000,019 characters; at most 1,048,576"] * 2


TABLE = {"image": "0.jpg", "question": "q", "label": "a"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", json.dumps(TABLE) + "\n" + json.dumps(TABLE), "no key answer; found image, question, label; name the keys"),
        ("train.csv", "image,question,label\n0.jpg,q,a\n", "no key answer; found image, question, label; name the keys"),
        ("train.json", '[{"image": "0.jpg", "text": "a"}]', "no key question; found image, text; name the keys"),
    ],
)
def test_table_without_the_keys_is_an_error_that_lists_those_found(tmp_path, name, content, message):
    put_images(tmp_path / "raw" / "own")
    put(tmp_path / "raw" / "own" / name, content)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        build(tmp_path / "raw")
    assert not (tmp_path / "out-own").exists()  # before the build


def test_class_folders_beside_a_table_are_named(tmp_path, capsys):
    raw = tmp_path / "raw"
    put_images(raw / "own")
    put_lines(raw / "own" / "train.jsonl", [*ROWS, ROWS[0] | {"id": "scan", "image": "scans/0.jpg"}])
    for folder in ("scans", "images", "glioma", "no tumour"):
        put_images(raw / "own" / folder)
    build(raw)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "own: read as a table (train.jsonl); ignored, unless a later row names a file in them: glioma, no tumour"
    assert second == f"own: to read them as classes, move them to a folder of their own, such as {raw}/own_classes, and give it in sources="
    put_lines(raw / "own" / "train.jsonl", [TABLE])
    with pytest.raises(UserError, match=r"; or move the table out of .*own, to read its folders glioma, no tumour, scans as classes$"):
        build(raw)


def test_single_row_without_the_keys_is_quarantined_with_those_found(tmp_path):
    put_lines(tmp_path / "own" / "train.jsonl", [{"question": "q", "label": "a"}, {"question": "q", "answer": "a"}])
    bad, good = rows_of(tmp_path)
    assert bad == InvalidRow("train-1", "no key answer: found question, label")
    assert good.answer == "a"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"'own' is not in sources\.yaml, and the folder .*own does not exist; allowed: "),
        ([], "holds neither a table .* it holds no files; see 'Your own data'"),
        (["a.dcm", "b.dcm", "notes.txt"], r"holds neither a table .* it holds 2 \.dcm, 1 \.txt; see"),
        (["a.json", "b.csv"], r"the split of a\.json, b\.csv is unknown; let each name start with train, val or test"),
        (["train.jsonl", "train.csv"], r"the train split has several formats: train\.jsonl, train\.csv; keep one"),
        (["yes/_mask.txt", "yes/a_mask.png", "no/Thumbs.db", "no/.b.png"], "holds neither a table"),
    ],
)
def test_folder_without_usable_data_is_an_error_that_says_what_it_holds(tmp_path, files, message):
    for name in files or []:
        put(tmp_path / "own" / name, "x")
    if files == []:
        (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match=message):
        sources.find_source("own", tmp_path)


def test_splits_follow_the_first_word_of_the_file_name(tmp_path):
    names = ("train_a.jsonl", "train-b.jsonl", "validation.jsonl", "data/test-00000-of-00001.jsonl", "metadata.csv", "[1].txt")
    for name in names:
        put_lines(tmp_path / "own" / name, [{"question": name, "answer": "a"}])
    rows = {split: rows_of(tmp_path, split) for split in SPLITS}
    assert {split: [row.question for row in rows[split]] for split in SPLITS} == {
        "train": ["train-b.jsonl", "train_a.jsonl"],
        "val": ["validation.jsonl"],
        "test": ["data/test-00000-of-00001.jsonl"],
    }
    assert [row.key for row in rows["train"]] == ["train-1", "train-2"]


def put_classes(folder: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        for n in range(count):
            put(folder / name / f"{n}.jpg", jpeg(RNG, height=16, width=16))
            put(folder / name / f"{n}_mask.png", b"not an image")
        put(folder / name / "Thumbs.db", b"x")
        put(folder / name / ".hidden.png", b"x")


@pytest.mark.slow
def test_class_folders_become_questions_with_the_splits_of_the_classification_set(tmp_path, capsys):
    put_classes(tmp_path / "raw" / "own", {"glioma": 10, "no tumour": 15})
    arguments = ["sources=own", f"raw={tmp_path}/raw", f"out={tmp_path}/out", "workers=1", "options.own.question=which tumour, if any?"]
    main(arguments)
    assert "own: read as one folder of images per class; the question is 'which tumour, if any?'\n" in capsys.readouterr().out
    shards = Shards(tmp_path / "out" / "own")
    records = [shards[row] for row in range(len(shards))]
    assert {record.question for record in records} == {"which tumour, if any?"}
    assert {(record.answer, *record.choices) for record in records} == {(name, "glioma", "no tumour") for name in ("glioma", "no tumour")}
    data = read_dataset("own", raw=tmp_path / "raw")
    splits = {(record.meta["name"], record.split) for record in records}
    assert splits == {(example.key, example.split) for example in data.examples}
    assert shards.manifest["counts"]["train"]["written"] == 15
    assert not any(counts["quarantined"] for counts in shards.manifest["counts"].values())


def test_class_folders_without_val_hold_out_a_part_of_train(tmp_path):
    for split, count in (("Training", 10), ("Testing", 3)):
        put_classes(tmp_path / "own" / split, {"a": count, "b": count})
    rows = {split: rows_of(tmp_path, split) for split in SPLITS}
    assert {split: len(rows[split]) for split in SPLITS} == {"train": 16, "val": 4, "test": 6}
    assert {row.meta["name"].partition("/")[0] for split in ("train", "val") for row in rows[split]} == {"Training"}
    assert {row.meta["name"].partition("/")[0] for row in rows["test"]} == {"Testing"}


def test_single_class_folder_is_refused(tmp_path):
    put_classes(tmp_path / "own", {"tumour": 3})
    with pytest.raises(UserError, match=r"only one class \('tumour'\) in 3 images; give at least two, as one folder per class"):
        rows_of(tmp_path)


def test_question_of_class_folders_is_shown_with_its_option(tmp_path):
    put_classes(tmp_path / "own", {"a": 1, "b": 1})
    notes = layout_notes(sources.find_source("own", tmp_path), tmp_path / "own")
    assert notes == [
        "read as one folder of images per class; the question is 'what does the image show?'",
        "for another question, add options.own.question=\"...\" (to make: ARGS='...')",
    ]
    put(tmp_path / "own" / "labels.csv", "image,label\n")
    assert "read as labels.csv (images" in layout_notes(sources.find_source("own", tmp_path), tmp_path / "own")[0]


def test_option_of_no_reader_is_an_error(tmp_path):
    put_lines(tmp_path / "raw" / "own" / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"options\.own\.question: unknown option; allowed: nothing"):
        build(tmp_path / "raw", options={"own": {"question": "q"}})


def test_missing_benchmark_names_its_download(tmp_path):
    with pytest.raises(UserError, match=r"breastmnist does not exist; download it: make download SOURCES=breastmnist RAW="):
        read_dataset("breastmnist", raw=tmp_path)


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_export_and_chat_reader_give_equal_records(tmp_path, capsys, form):
    raw = tmp_path / "raw"
    put_images(raw / "own")
    rows = [
        *ROWS,
        {"id": "a/b.c", "image": ["0.jpg", "1.jpg"], "question": "Which?", "answer": "x", "choices": ["x", "y"], "references": ["x", "z"]},
        {"image": "2.jpg", "caption": "A scan.", "licence": "CC0"},
        {"question": "Without an image?", "answer": "yes", "depth": {"of": [1, 2.5]}},
        messages(ROWS[0]) | {"id": "turns", "messages": [SYSTEM, USER, ASSISTANT, user("more?"), ASSISTANT]},
    ]
    put_lines(raw / "own" / "train.jsonl", rows)
    put_lines(raw / "own" / "test.jsonl", [ROWS[0] | {"id": "t"}])
    first = build(raw)
    export_chat(ExportConfig(source="own", out=first.folder.parent, to=tmp_path / "again" / "own", form=form))
    assert len(list((tmp_path / "again" / "own" / "images").iterdir())) == 3
    second = build(tmp_path / "again")
    assert [second[row] for row in range(len(second))] == [first[row] for row in range(len(rows) + 1)]
    assert first.manifest["shards"] == second.manifest["shards"]  # with their sha256
    assert second.manifest["notes"] == first.manifest["notes"]
    line = json.loads((tmp_path / "again" / "own" / "train.jsonl").read_text().splitlines()[-1])
    if form == "messages":
        assert (line["messages"][0], line.get("system")) == (SYSTEM, None)
    else:
        assert (line["conversations"][0]["from"], line["system"]) == ("human", "s")
    with pytest.raises(UserError, match="own: already exists; remove it"):
        export_chat(ExportConfig(source="own", out=first.folder.parent, to=tmp_path / "again" / "own", form=form))


def test_failed_export_leaves_nothing_behind(tmp_path):
    put_lines(tmp_path / "raw" / "own" / "train.jsonl", [{"question": "q", "answer": "a", "depth": 1}])
    shards = build(tmp_path / "raw")
    config = ExportConfig(source="own", out=shards.folder.parent, to=tmp_path / "again" / "own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.export_chat.RECORD_KEYS", ("depth",))
        with pytest.raises(UserError, match="its meta has the key 'depth' of a chat row"):
            export_chat(config)
    assert list(config.to.parent.iterdir()) == []
    export_chat(config)
    assert [path.name for path in config.to.parent.iterdir()] == ["own"]


@pytest.mark.parametrize("marks", [{"credentialed": True}, {"phantom": True}], ids=str)
def test_export_keeps_what_the_manifest_marks(tmp_path, marks):
    raw, to = tmp_path / "raw", tmp_path / "again" / "own"
    put_images(raw / "own")
    put_lines(raw / "own" / "train.jsonl", ROWS)
    manifest = build(raw).folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | marks))
    config = ExportConfig(source="own", out=manifest.parent.parent, to=to)
    if "credentialed" in marks:
        with pytest.raises(UserError, match="source=own: credentialed; its texts stay in its shards"):
            export_chat(config)
        assert not to.exists()
    else:
        export_chat(config)
        assert build(tmp_path / "again").manifest["phantom"]


def test_reader_yields_a_note_after_its_record(tmp_path):
    put_images(tmp_path / "own")
    put_lines(tmp_path / "own" / "train.jsonl", [messages(ROWS[0]) | {"messages": [SYSTEM, USER, ASSISTANT]}])
    record, note = rows_of(tmp_path)
    assert isinstance(record, Record)
    assert note == Note("system text stored in meta")


def test_system_is_a_turn_of_conversations_and_a_column_of_tables(tmp_path):
    put_images(tmp_path / "own")
    rows = [messages(ROWS[0]) | {"id": "chat", "system": "Be brief."}, ROWS[1] | {"id": "row", "system": "respiratory"}]
    put_lines(tmp_path / "own" / "train.jsonl", rows)
    shards = build(tmp_path)
    metas = {shards[row].key: shards[row].meta for row in range(len(shards))}
    assert (metas["chat"].get("system"), metas["row"].get("system")) == ("Be brief.", None)
    assert metas["row"]["system_column"] == "respiratory"
    assert sum(shards.manifest["notes"].values()) == 1


@pytest.mark.parametrize(
    ("value", "type_", "meta"),
    [("open", "finding", {"type_column": "open"}), (3, "finding", {"type_column": 3}), ("Modality", "modality", {}), ("", "finding", {})],
)
def test_type_of_the_user_that_is_no_question_type_is_kept_as_meta(tmp_path, value, type_, meta):
    put_lines(tmp_path / "own" / "train.jsonl", [{"question": "What is shown?", "answer": "a", "type": value}])
    record, *notes = rows_of(tmp_path)
    assert (record.type, record.meta) == (type_, meta)
    assert notes == [Note(TYPE_NOTE)] * len(meta)


def test_boolean_answers_are_yes_and_no(tmp_path):
    put_images(tmp_path / "own")
    put_lines(tmp_path / "own" / "train.jsonl", [ROWS[0] | {"id": str(value), "answer": value} for value in (True, False)])
    shards = build(tmp_path)
    assert [shards[row].answer for row in range(2)] == ["yes", "no"]
