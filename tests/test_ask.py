"""One question or a table of them, from the command line to the answer."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from src import ask as command
from src.ask import ask, ask_all
from src.config.ask import AskConfig
from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.runtime.cli import compose
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.conftest import overrides
from tests.runs import finish, tokenizer_without_bytes
from tests.test_image_io import RAMP, dicom


@pytest.fixture(scope="module")
def run(shards, language, tmp_path_factory):
    """(run folder, folder with pictures a.png and b.png)."""
    folder, _ = finish(overrides(shards, language, tmp_path_factory.mktemp("runs")))
    pictures = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)).save(pictures / name)
    return folder, pictures


def configured(folder, *words: str) -> AskConfig:
    given = [f"model=run:{folder.name}", f"outputs={folder.parent}", "accelerator=cpu", "max_new_tokens=8", *words]
    return to_typed(AskConfig, compose("ask", quote_free_text(given, texts=("model", "question", "image", "batch", "out"))))


def test_an_answer_is_that_of_the_model_and_says_how_sure(run):
    folder, pictures = run
    (line,) = ask(configured(folder, "question=which organ is shown?", f"image={pictures}/a.png"))
    found = load_vqa_model(str(folder)).answers([VQAQuery("which organ is shown?", [Image.open(pictures / "a.png")])], Sampling(8))[0]
    assert line["prediction"] == found.text
    assert line["confidence"] == pytest.approx(found.confidence, abs=1e-6)
    assert found.confidence < 0


@pytest.mark.parametrize(
    "question",
    [
        'what, is "this" (left), {a: b}, [c]?',
        "50% of $HOME or ${oc.env:HOME}?",
        "back\\slash \\",
        "ist das gr\u00f6\u00dfer? \u662f\u4ec0\u4e48?",
        "a=b&c",
    ],
)
def test_a_question_is_taken_as_it_is_written(run, question):
    assert configured(run[0], f"question={question}").question == question


@pytest.mark.slow
def test_a_list_of_images_and_a_strange_file_name(run):
    folder, pictures = run
    strange = pictures / "scan, no. 1 (copy).png"
    strange.write_bytes((pictures / "a.png").read_bytes())
    assert ask(configured(folder, "question=q", f"image={strange}"))[0]["image"] == [str(strange)]
    assert len(ask(configured(folder, "question=q", f"image=[{pictures}/a.png,{pictures}/b.png]"))[0]["image"]) == 2


@pytest.mark.slow
def test_a_frame_of_a_dicom_file_is_asked_about(run, tmp_path):
    """By `frame=`, and by the column of a table; the answer is that to the frame's picture."""
    folder, _ = run
    scan = dicom(tmp_path / "scan.dcm", np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]]))
    (line,) = ask(configured(folder, "question=which organ is shown?", f"image={scan}", "frame=2"))
    picture = Image.fromarray(np.rint(RAMP[:, ::-1] / 3820 * 255).astype(np.uint8)).convert("RGB")
    query = VQAQuery("which organ is shown?", [picture])
    found = load_vqa_model(str(folder)).answers([query], Sampling(8))[0]
    assert (line["prediction"], line["confidence"]) == (found.text, pytest.approx(found.confidence, abs=1e-6))
    other = ask(configured(folder, "question=which organ is shown?", f"image={scan}", "frame=0"))[0]
    assert other["confidence"] != pytest.approx(line["confidence"], abs=1e-6)
    (tmp_path / "t.csv").write_text("question,image,frame\nwhich organ is shown?,scan.dcm,2\n")
    (again,) = ask_all(configured(folder, f"batch={tmp_path}/t.csv")).read_text().splitlines()
    assert json.loads(again)["confidence"] == pytest.approx(line["confidence"], abs=1e-6)
    with pytest.raises(UserError, match=r"scan\.dcm: the file holds 3 frames; choose one with frame=0 to frame=2"):
        ask(configured(folder, "question=which organ is shown?", f"image={scan}"))


def test_a_table_is_answered_like_its_questions_one_by_one(run, tmp_path):
    folder, pictures = run
    table = tmp_path / "questions.csv"
    table.write_text(
        f'id,question,image\nx,"what, is it?",{pictures}/a.png\ny,which side?,{pictures}/a.png|{pictures}/b.png\n,no image?,\n'
    )
    out = ask_all(configured(folder, f"batch={table}"))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["x", "y", "3"]
    alone = ask(configured(folder, "question=what, is it?", f"image={pictures}/a.png"))[0]
    assert lines[0]["prediction"] == alone["prediction"]
    assert lines[0]["confidence"] == pytest.approx(alone["confidence"], abs=1e-4)
    again = tmp_path / "questions.jsonl"
    again.write_text("".join(json.dumps({"question": line["question"], "image": line["image"]}) + "\n" for line in lines))
    found = ask_all(configured(folder, f"batch={again}", f"out={tmp_path}/new/answers.jsonl")).read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in found] == [line["prediction"] for line in lines]


def test_history_changes_the_prompt_and_the_oldest_turn_goes_first(run):
    answerer = load_vqa_model(str(run[0]))
    query = VQAQuery("and now?", history=[(f"turn {n} {'long ' * 5}?", f"answer {n}") for n in range(12)])
    text = answerer.model.language.tokenizer.decode(answerer.prepare(query, Sampling(8)).prompt)
    assert text.endswith("Question: turn 11 long long long long long ?\nAnswer:answer 11</s>Question: and now?\nAnswer:")
    assert "turn 0" not in text


def test_sampling_is_repeatable_and_greedy_ignores_the_seed(run):
    answerer = load_vqa_model(str(run[0]))

    def texts(**settings) -> list[str]:
        return [answerer.answers([VQAQuery("which organ?")], Sampling(8, seed=seed, **settings))[0].text for seed in (0, 1, 0)]

    warm, greedy = texts(temperature=1.5), texts()
    assert warm[0] == warm[2] != warm[1]
    assert greedy[0] == greedy[1]


def test_the_stream_ends_with_the_answer(run):
    answerer = load_vqa_model(str(run[0]))
    grown = [answer.text for answer in answerer.stream(VQAQuery("which organ?"), Sampling(8))]
    assert grown[-1] == answerer.answers([VQAQuery("which organ?")], Sampling(8))[0].text
    assert [len(text) for text in grown] == sorted(len(text) for text in grown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["question= "], "the question is empty"),
        (["question=a\u0000b"], "control characters"),
        (["question=q", "image=nothing.png"], "nothing.png: no such image file"),
        ([f"question={'long ' * 200}"], "the question has"),
        (["question=q", "checkpoint=newest"], "checkpoint='newest'"),
        (["question=q", "model=tiny"], "write model=run:tiny"),
        (["question=q", "model=run:tinny"], "no run 'tinny'"),
        (["question=q", "model=nowhere"], "neither run:<name"),
        (["question=q", "max_new_tokens=0"], "max_new_tokens must be at least 1, found 0"),
        (["question=q", "temperature=-1"], "temperature must be 0 (greedy) or more, found -1"),
        (["question=q", "temperature=nan"], "temperature must be 0 (greedy) or more, found nan"),
        (["question=q", "top_p=0"], "top_p must be above 0 and at most 1, found 0"),
        (["question=q", "seed=-1"], "seed must be from 0"),
        (["question=q", "temprature=1"], "unknown config key 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_mistakes_are_one_sentence(run, words, said):
    with pytest.raises(UserError) as caught:
        ask(configured(run[0], *words))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("question\n", "holds no question"),
        ("quesion,image\na,b\n", "row 1: unknown column 'quesion'; did you mean 'question'?"),
        ("question,image\n,a.png\n", "row 1 has no question"),
        ("question,frame\nq,two\n", "row 1: frame='two' is no number"),
        ("question,image\nq,b.png\n", "id 1: {folder}/b.png: no such image file"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_row(run, tmp_path, table, said):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError) as caught:
        ask_all(configured(run[0], f"batch={tmp_path}/t.csv"))
    assert said.format(folder=tmp_path) in str(caught.value)
    assert not (tmp_path / "t.answers.jsonl").exists()


@pytest.mark.slow
def test_a_model_that_never_saw_an_image_takes_none(shards, language, tmp_path, run):
    folder, _ = finish(overrides(shards, language, tmp_path), "data.images=false")
    assert ask(configured(folder, "question=q"))
    with pytest.raises(UserError, match="was trained without images"):
        ask(configured(folder, "question=q", f"image={run[1]}/a.png"))


@pytest.mark.slow
def test_the_command_prints_one_answer_or_one_json_line(run, monkeypatch, capsys):
    folder, pictures = run
    words = [f"model=run:{folder.name}", f"outputs={folder.parent}", "max_new_tokens=8", "accelerator=cpu"]
    words += ["question=which?", f"image={pictures}/a.png"]
    monkeypatch.setattr(sys, "argv", ["ask", *words, "json=true"])
    command.main()
    line = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", ["ask", *words])
    command.main()
    assert capsys.readouterr().out == line["prediction"] + "\n"
    monkeypatch.setattr(sys, "argv", ["ask", *words, "batch=also.csv"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == 'error: give either question="..." or batch=FILE\n'


@pytest.mark.slow
def test_a_question_without_an_image_is_answered_and_says_so(run, monkeypatch, capsys):
    folder, pictures = run
    note = "no image was given; the answer rests on the question alone"
    assert ask(configured(folder, "question=which organ?"))[0]["note"] == note
    assert "note" not in ask(configured(folder, "question=which organ?", f"image={pictures}/a.png"))[0]
    monkeypatch.setattr(
        sys, "argv", ["ask", f"model=run:{folder.name}", f"outputs={folder.parent}", "max_new_tokens=4", "question=which organ?"]
    )
    command.main()
    assert capsys.readouterr().err == f"note: {note}\n"


@pytest.mark.parametrize(
    "question", ["\u8fd9\u662f\u4ec0\u4e48\u5668\u5b98?", "\u041a\u0430\u043a\u043e\u0439 \u043e\u0440\u0433\u0430\u043d?"]
)
def test_a_script_that_the_vocabulary_lacks_is_one_sentence(run, question):
    """The phantom tokenizer has no bytes to fall back on, as LLaMA's has; unknown tokens would silently ask something else."""
    answerer = load_vqa_model(str(run[0]))
    tokenizer = tokenizer_without_bytes()
    answerer.model.language.tokenizer = answerer.prompter.tokenizer = tokenizer
    with pytest.raises(UserError) as caught:
        answerer.prepare(VQAQuery(question), Sampling(8))
    assert str(caught.value).startswith("the question has characters that the model's vocabulary lacks: ")
    assert set(str(caught.value).rpartition(": ")[2].split()) <= set(question)
    assert "\n" not in str(caught.value)
    answerer.prepare(VQAQuery("which organ is shown?"), Sampling(8))
