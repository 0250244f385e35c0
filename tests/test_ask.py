"""`python -m src.ask`: one question or a table of questions, from the command line to the answer."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.soak.images import RAMP, dicom
from src import ask as command
from src.ask import ask, ask_all, converse, read_history
from src.config.ask import AskConfig
from src.inference.query import EMPTY_ANSWER, Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.runtime.cli import compose
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.fixtures import overrides
from tests.rounding import forward_steps, rounding
from tests.runs import finish, tokenizer_without_bytes


@pytest.fixture(scope="module")
def run(shards, language, tmp_path_factory):
    """(run folder, folder with the images a.png and b.png)."""
    folder, _ = finish(overrides(shards, language, tmp_path_factory.mktemp("runs")))
    pictures = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)).save(pictures / name)
    return folder, pictures


def ask_config(folder, *words: str) -> AskConfig:
    settings = [f"model=run:{folder.name}", f"outputs={folder.parent}", "accelerator=cpu", "max_new_tokens=8", *words]
    return to_typed(AskConfig, compose("ask", quote_free_text(settings, texts=("model", "question", "image", "batch", "out"))))


def test_ask_returns_the_answer_and_confidence_of_the_model(run):
    folder, pictures = run
    prediction = ask(ask_config(folder, "question=which organ is shown?", f"image={pictures}/a.png"))
    query = VQAQuery("which organ is shown?", [Image.open(pictures / "a.png")])
    answer = load_vqa_model(str(folder)).answers([query], Sampling(8))[0]
    assert prediction["prediction"] == answer.text
    assert prediction["confidence"] == pytest.approx(answer.confidence, abs=1e-6)
    assert answer.confidence < 0


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
def test_question_needs_no_quoting(run, question):
    assert ask_config(run[0], f"question={question}").question == question


@pytest.mark.slow
def test_image_accepts_lists_and_special_file_names(run):
    folder, pictures = run
    special = pictures / "scan, no. 1 (copy).png"
    special.write_bytes((pictures / "a.png").read_bytes())
    assert ask(ask_config(folder, "question=q", f"image={special}"))["image"] == [str(special)]
    assert len(ask(ask_config(folder, "question=q", f"image=[{pictures}/a.png,{pictures}/b.png]"))["image"]) == 2


@pytest.mark.slow
def test_frame_selects_the_image_of_a_dicom_file(run, tmp_path):
    """As `frame=` and as the column of a table. The answer equals the answer to the image of the frame."""
    folder, _ = run
    scan = dicom(tmp_path / "scan.dcm", np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]]))
    prediction = ask(ask_config(folder, "question=which organ is shown?", f"image={scan}", "frame=2"))
    picture = Image.fromarray(np.rint(RAMP[:, ::-1] / 3820 * 255).astype(np.uint8)).convert("RGB")
    query = VQAQuery("which organ is shown?", [picture])
    answer = load_vqa_model(str(folder)).answers([query], Sampling(8))[0]
    assert (prediction["prediction"], prediction["confidence"]) == (answer.text, pytest.approx(answer.confidence, abs=1e-6))
    other = ask(ask_config(folder, "question=which organ is shown?", f"image={scan}", "frame=0"))
    assert other["confidence"] != pytest.approx(prediction["confidence"], abs=1e-6)
    (tmp_path / "t.csv").write_text("question,image,frame\nwhich organ is shown?,scan.dcm,2\n")
    (line,) = ask_all(ask_config(folder, f"batch={tmp_path}/t.csv")).read_text().splitlines()
    assert json.loads(line)["confidence"] == pytest.approx(prediction["confidence"], abs=1e-6)
    with pytest.raises(UserError, match=r"scan\.dcm: the file holds 3 frames; choose one with frame=0 to frame=2"):
        ask(ask_config(folder, "question=which organ is shown?", f"image={scan}"))


@pytest.mark.slow
def test_table_gets_the_same_answers_as_single_questions(run, tmp_path):
    folder, pictures = run
    table = tmp_path / "questions.csv"
    table.write_text(
        f'id,question,image\nx,"what, is it?",{pictures}/a.png\ny,which side?,{pictures}/a.png|{pictures}/b.png\n,no image?,\n'
    )
    out = ask_all(ask_config(folder, f"batch={table}"))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["x", "y", "3"]
    single = ask(ask_config(folder, "question=what, is it?", f"image={pictures}/a.png"))
    assert lines[0]["prediction"] == single["prediction"]
    tolerance = rounding(forward_steps(load_vqa_model(str(folder)).model.language.body.config, length=160), 10)
    assert lines[0]["confidence"] == pytest.approx(single["confidence"], abs=tolerance)
    jsonl = tmp_path / "questions.jsonl"
    jsonl.write_text("".join(json.dumps({"question": line["question"], "image": line["image"]}) + "\n" for line in lines))
    out = ask_all(ask_config(folder, f"batch={jsonl}", f"out={tmp_path}/new/answers.jsonl"))
    assert [json.loads(line)["prediction"] for line in out.read_text().splitlines()] == [line["prediction"] for line in lines]


def test_follow_up_question_comes_after_the_turns_before_it(run, tmp_path):
    folder, pictures = run
    file, questions, answers = tmp_path / "scan.jsonl", ["which organ?", "is it normal?", "how many?"], []
    words = [f"image={pictures}/a.png", f"history={file}"]
    predictions = converse(ask_config(folder, *words, 'questions=["which organ?","is it normal?"]'))
    predictions += converse(ask_config(folder, *words, "question=how many?"))
    model, images = load_vqa_model(str(folder)), [Image.open(pictures / "a.png")]
    for n, prediction in enumerate(predictions):
        answer = model.answers([VQAQuery(questions[n], images, list(zip(questions, answers, strict=False)))], Sampling(8))[0]
        assert (prediction["question"], prediction["prediction"]) == (questions[n], answer.text)
        assert prediction["confidence"] == pytest.approx(answer.confidence, abs=1e-6)
        answers.append(answer.text.strip() or EMPTY_ANSWER)
    assert read_history(file) == list(zip(questions, answers, strict=True))
    alone = ask(ask_config(folder, f"image={pictures}/a.png", "question=how many?"))
    assert alone["confidence"] != pytest.approx(predictions[-1]["confidence"], abs=1e-6)


@pytest.mark.parametrize(
    ("content", "line"),
    [("q", 1), ("[1]", 1), ('{"question": "q", "answer": "a"}\n\n{"question": "q"}', 3), ('{"question": " ", "answer": "a"}', 1)],
)
def test_line_of_a_history_that_is_no_turn_is_named(tmp_path, content, line):
    (tmp_path / "h.jsonl").write_text(content)
    with pytest.raises(UserError, match=rf"h\.jsonl, line {line}: not a turn"):
        read_history(tmp_path / "h.jsonl")


def test_history_that_does_not_fit_loses_its_oldest_turns(run):
    model = load_vqa_model(str(run[0]))
    query = VQAQuery("and now?", history=[(f"turn {n} {'long ' * 5}?", f"answer {n}") for n in range(12)])
    text = model.model.language.tokenizer.decode(model.prepare(query, Sampling(8)).prompt)
    assert text.endswith("Question: turn 11 long long long long long ?\nAnswer:answer 11</s>Question: and now?\nAnswer:")
    assert "turn 0" not in text


def test_sampling_is_repeatable_and_greedy_ignores_the_seed(run):
    model = load_vqa_model(str(run[0]))

    def texts(**settings) -> list[str]:
        return [model.answers([VQAQuery("which organ?")], Sampling(8, seed=seed, **settings))[0].text for seed in (0, 1, 0)]

    sampled, greedy = texts(temperature=1.5), texts()
    assert sampled[0] == sampled[2] != sampled[1]
    assert greedy[0] == greedy[1]


def test_stream_ends_with_the_answer(run):
    model = load_vqa_model(str(run[0]))
    texts = [answer.text for answer in model.stream(VQAQuery("which organ?"), Sampling(8))]
    assert texts[-1] == model.answers([VQAQuery("which organ?")], Sampling(8))[0].text
    assert [len(text) for text in texts] == sorted(len(text) for text in texts)


@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_invalid_settings_are_refused_in_one_line(run, settings, message):
    with pytest.raises(UserError) as error:
        ask(ask_config(run[0], *settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("question\n", "holds no question"),
        ("quesion,image\na,b\n", "row 1: unknown column 'quesion'; did you mean 'question'?"),
        ("question,image\n,a.png\n", "row 1 has no question"),
        ("question,frame\nq,two\n", "row 1: frame='two' is no number"),
        ("question,image\nq,b.png\n", "{folder}/t.csv, id 1: {folder}/b.png: no such image file"),
    ],
)
def test_invalid_table_rows_are_named(run, tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError) as error:
        ask_all(ask_config(run[0], f"batch={tmp_path}/t.csv"))
    assert message.format(folder=tmp_path) in str(error.value)
    assert not (tmp_path / "t.answers.jsonl").exists()


@pytest.mark.slow
def test_model_trained_without_images_refuses_images(shards, language, tmp_path, run):
    folder, _ = finish(overrides(shards, language, tmp_path), "data.images=false")
    assert ask(ask_config(folder, "question=q"))
    with pytest.raises(UserError, match="was trained without images"):
        ask(ask_config(folder, "question=q", f"image={run[1]}/a.png"))


@pytest.mark.slow
def test_command_prints_the_answer_or_json(run, monkeypatch, capsys):
    folder, pictures = run
    words = [f"model=run:{folder.name}", f"outputs={folder.parent}", "max_new_tokens=8", "accelerator=cpu"]
    words += ["question=which?", f"image={pictures}/a.png"]
    monkeypatch.setattr(sys, "argv", ["ask", *words, "json=true"])
    command.main()
    prediction = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", ["ask", *words])
    command.main()
    assert capsys.readouterr().out == prediction["prediction"] + "\n"
    monkeypatch.setattr(sys, "argv", ["ask", *words, "batch=also.csv"])
    with pytest.raises(SystemExit) as error:
        command.main()
    assert error.value.code == 2
    assert capsys.readouterr().err == 'error: give one of question="...", questions=[...] and batch=FILE\n'


@pytest.mark.slow
def test_question_without_an_image_gets_a_note(run, monkeypatch, capsys):
    folder, pictures = run
    note = "no image was given; the answer rests on the question alone"
    assert ask(ask_config(folder, "question=which organ?"))["note"] == note
    assert "note" not in ask(ask_config(folder, "question=which organ?", f"image={pictures}/a.png"))
    monkeypatch.setattr(
        sys, "argv", ["ask", f"model=run:{folder.name}", f"outputs={folder.parent}", "max_new_tokens=4", "question=which organ?"]
    )
    capsys.readouterr()
    command.main()
    assert capsys.readouterr().err == f"note: Trained on alpha, beta, gamma.\nnote: {note}\n"


@pytest.mark.parametrize(
    "question", ["\u8fd9\u662f\u4ec0\u4e48\u5668\u5b98?", "\u041a\u0430\u043a\u043e\u0439 \u043e\u0440\u0433\u0430\u043d?"]
)
def test_characters_outside_the_vocabulary_are_refused(run, question):
    """Unlike LLaMA's tokenizer, this one has no byte fallback; unknown tokens would silently change the question."""
    model = load_vqa_model(str(run[0]))
    tokenizer = tokenizer_without_bytes()
    model.model.language.tokenizer = model.prompter.tokenizer = tokenizer
    with pytest.raises(UserError) as error:
        model.prepare(VQAQuery(question), Sampling(8))
    assert str(error.value).startswith("the question has characters that the model's vocabulary lacks: ")
    assert set(str(error.value).rpartition(": ")[2].split()) <= set(question)
    assert "\n" not in str(error.value)
    model.prepare(VQAQuery("which organ is shown?"), Sampling(8))
