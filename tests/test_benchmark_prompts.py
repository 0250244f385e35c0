"""What a model reads when it is asked a benchmark: the whole text, from a raw row to the last token.

A change of one of these texts changes what every published score means, so each stands here word for word.
"""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import src.evaluate
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.config.evaluate import EvaluateConfig
from src.evaluate import evaluate
from src.evaluation import benchmark
from src.model.generate import make_request
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.conftest import overrides
from tests.runs import finish
from tests.test_readers import image, put, put_lines, put_parquet, put_zip

PICTURE = "<image>" * 4  # 32 pixels in patches of 16
PROMPTS = {
    "pathvqa": f"<s>{PICTURE}Question: what is present?\nAnswer:",
    "vqa_med_2019": f"<s>{PICTURE}Question: what is abnormal in the ct?\nAnswer:",
    "vqa_rad": f"<s>{PICTURE}Question: is there a fracture?\nAnswer:",
    "vqa_rad_disjoint": f"<s>{PICTURE}Question: which lobe is affected?\nAnswer:",
    "slake": f"<s>{PICTURE}Question: Where is the liver?\nAnswer:",
    "pmc_vqa": f"<s>{PICTURE}Question: What uptake is seen?\nA: Diffuse\nB: Focal\nC: None\nD: A and B\nAnswer:",
    "medqa": "<s>Question: A patient is pale. What is low?\nA: Zinc\nB: Iron\nC: Gold\nD: Lead\nAnswer:",
    "medmcqa": "<s>Question: Is K+ < 3 & low?\nA: One\nB: Two\nC: Three\nD: Four\nAnswer:",
    "pubmedqa": "<s>Question: Mice were fed. They grew.\nDo mice grow?\nAnswer:",
}
TEXT_ONLY = [name for name, prompt in PROMPTS.items() if "<image>" not in prompt]


def raw_rows(raw: Path) -> None:
    """A test set of each source in its raw layout; VQA-RAD has a picture on both sides of its split."""
    put_parquet(raw / "pathvqa/data/test-0.parquet", [{"image": image(0), "question": " what is present?", "answer": "necrosis"}])
    put(raw / "vqa_med_2019/VQAMed2019Test/VQAMed2019_Test_Images/s1.jpg", image(0)["bytes"])
    asked = "s1|abnormality|what is abnormal in the ct?|cyst#a cyst\n"
    put(raw / "vqa_med_2019/VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt", asked)
    put_parquet(raw / "vqa_rad/data/train-0.parquet", [{"image": image(0), "question": "what plane is this?", "answer": "axial"}])
    rows = [
        {"image": image(0), "question": "is there a fracture?", "answer": "no"},
        {"image": image(1), "question": "which lobe is affected?", "answer": "upper"},
    ]
    put_parquet(raw / "vqa_rad/data/test-0.parquet", rows)
    row = {
        "img_name": "xmlab1/source.jpg",
        "question": "Where is the liver?",
        "answer": "Right",
        "q_lang": "en",
        "content_type": "Position",
    }
    put(raw / "slake/test.json", json.dumps([row]))
    put_zip(raw / "slake/imgs.zip", {"imgs/xmlab1/source.jpg": image(2)["bytes"]})
    header = "Figure_path,Question,Anwser,Choice A,Choice B,Choice C,Choice D,Answer_label"
    put(raw / "pmc_vqa/test_clean.csv", f"{header}\nf.jpg,What uptake is seen?,Focal, A:Diffuse, B:Focal, C:None, D:A and B,B\n")
    put_zip(raw / "pmc_vqa/images.zip", {"images/f.jpg": image(3)["bytes"]})
    options = {"A": "Zinc", "B": "Iron", "C": "Gold", "D": "Lead"}
    row = {"question": "A patient is pale. What is low?", "answer": "Iron", "options": options, "answer_idx": "B", "meta_info": "step1"}
    put_lines(raw / "medqa/phrases_no_exclude_test.jsonl", row)
    row = {"id": "x", "question": "Is K+&nbsp;&lt; 3 &amp; low?", "opa": "One", "opb": "Two", "opc": "Three", "opd": "Four", "cop": 2}
    put_parquet(raw / "medmcqa/data/validation-0.parquet", [row])
    article = {"QUESTION": "Do mice grow?", "CONTEXTS": ["Mice were fed.", "They grew."], "final_decision": "yes"}
    put(raw / "pubmedqa/data/ori_pqal.json", json.dumps({"7": article}))
    put(raw / "pubmedqa/data/test_ground_truth.json", '{"7": "yes"}')


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    raw_rows(raw)
    names = [name for name in PROMPTS if name != "vqa_rad_disjoint"]
    build_all(BuildConfig(sources=names, raw=raw, out=out, workers=1))
    return out


@pytest.fixture(scope="module")
def run(shards, language, tmp_path_factory) -> Path:
    return finish(overrides(shards, language, tmp_path_factory.mktemp("outputs")))[0]


def read_by_the_model(run: Path, root: Path, names: list[str], images: list[str]) -> dict[str, list[str]]:
    """Everything that `src.evaluate` gives the model to read, in the order in which it asks, by benchmark and condition."""
    words = [f"run={run.name}", f"outputs={run.parent}", f"data_root={root}", f"benchmarks=[{','.join(names)}]", "max_seq_len=512"]
    words += [f"images=[{','.join(images)}]", "resamples=10", "max_new_tokens=2", "accelerator=cpu"]
    seen: dict[str, list[str]] = {}
    asking = []

    def listening(record, *, prompter, **given):
        question = make_request(record, prompter=prompter, **given)
        seen[asking[-1]].append(prompter.tokenizer.decode(prompter.prefix(len(question.images)) + question.prompt))
        return question

    def answering(test, condition, *given, **more):
        asking.append(f"{test.name} {condition}")
        seen[asking[-1]] = []
        return answer(test, condition, *given, **more)

    answer = src.evaluate.answer_condition
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(src.evaluate, "make_request", listening)
        patch.setattr(src.evaluate, "answer_condition", answering)
        evaluate(to_typed(EvaluateConfig, compose("evaluate", words)))
    return seen


@pytest.fixture(scope="module")
def seen(run, root) -> dict[str, list[str]]:
    return read_by_the_model(run, root, list(PROMPTS), ["real", "blank", "none"])


def test_every_benchmark_of_answers_has_its_prompt_here():
    served = {path.stem for path in benchmark.FOLDER.glob("*.yaml") if "source" in OmegaConf.load(path)}
    assert served == PROMPTS.keys()


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_word_for_word(seen, name):
    first = seen[f"{name} {'none' if name in TEXT_ONLY else 'real'}"][0]
    assert first == PROMPTS[name]


@pytest.mark.parametrize("name", [name for name in PROMPTS if name not in TEXT_ONLY])
def test_a_condition_changes_the_images_and_not_the_words(seen, name):
    assert seen[f"{name} blank"] == seen[f"{name} real"]
    assert seen[f"{name} none"] == [prompt.replace("<image>", "") for prompt in seen[f"{name} real"]]


def test_the_disjoint_benchmark_leaves_out_exactly_the_shared_picture(seen):
    assert len(seen["vqa_rad real"]) == 2
    assert seen["vqa_rad_disjoint real"] == seen["vqa_rad real"][1:]


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_a_text_only_benchmark_is_asked_once_without_any_image(seen, name):
    assert [key for key in seen if key.startswith(f"{name} ")] == [f"{name} none"]


@pytest.mark.parametrize("name", TEXT_ONLY)
@pytest.mark.parametrize("condition", ["real", "shuffled", "blank"])
def test_an_image_for_a_text_only_benchmark_is_refused(run, root, name, condition):
    with pytest.raises(UserError, match=rf"benchmark '{name}' has no images, images=\['{condition}'\] cannot be shown") as mistake:
        read_by_the_model(run, root, [name], [condition])
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_no_condition_finds_an_image_for_a_text_only_benchmark(root, name):
    """Asked past the refusal, there is still none to put before the words."""
    test = benchmark.read_benchmark(name, root=root)
    for condition, rows in (("real", test.rows), ("blank", None), ("none", None)):
        ((_, pixels),) = benchmark.condition_images(test, [0], condition, rows, mean=torch.full((3, 1, 1), 0.5), size=32, exact=False)
        assert pixels == []
