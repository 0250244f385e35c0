"""The complete prompt of each benchmark, from a raw row to the last token.

A change of a prompt changes the meaning of every published score, so each prompt is written out here.
"""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.commands import evaluate as evaluate_module
from src.commands.evaluate import answer_condition
from src.commands.score import score_predictions
from src.config.evaluate import EvaluateConfig
from src.evaluate import evaluate
from src.evaluation import benchmark
from src.evaluation.condition_images import condition_images
from src.evaluation.predictions_file import read_predictions
from src.model.generate import make_request
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.fixtures import overrides
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
    "mmmu_med": f"<s>{PICTURE * 2}Question: Compare <image 1> and <image 2>.\nA: a\nB: b\nAnswer:",
    "medxpertqa_mm": f"<s>{PICTURE}Question: Which artery?\nA: C\nB: D\nAnswer:",
    "medframeqa": f"<s>{PICTURE * 3}Question: What changes?\nA: a\nB: b\nC: c\nAnswer:",
    "omnimedvqa_open": f"<s>{PICTURE}Question: What is shown?\nA: cyst\nB: nodule\nAnswer:",
    "pubmedqa": "<s>Question: Mice were fed. They grew.\nDo mice grow?\nAnswer:",
}
TEXT_ONLY = [name for name, prompt in PROMPTS.items() if PICTURE not in prompt]


def raw_rows(raw: Path) -> None:
    """A test set of each source in its raw layout; VQA-RAD has one image in both splits."""
    put_parquet(raw / "pathvqa/data/test-0.parquet", [{"image": image(0), "question": " what is present?", "answer": "necrosis"}])
    put(raw / "vqa_med_2019/VQAMed2019Test/VQAMed2019_Test_Images/s1.jpg", image(0)["bytes"])
    line = "s1|abnormality|what is abnormal in the ct?|cyst#a cyst\n"
    put(raw / "vqa_med_2019/VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt", line)
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
    row = {"question": "Compare <image 1> and <image 2>.", "options": "['a', 'b']", "answer": "B", "image_1": image(0), "image_2": image(1)}
    opened = row | {"question": "What dose is shown in <image 1>?", "options": "[]", "answer": "['2', '2 mg']"}
    put_parquet(raw / "mmmu_med/Pharmacy/validation-0.parquet", [row, opened])
    put_zip(raw / "medxpertqa_mm/images.zip", {"images/a.jpeg": image(0)["bytes"]})
    row = {"question": "Which artery? Answer Choices: (A) C (B) D", "options": {"A": "C", "B": "D"}, "label": "A", "images": ["a.jpeg"]}
    put_lines(raw / "medxpertqa_mm/MM/test.jsonl", row)
    row = {"question": "What changes?", "options": list("abc"), "correct_answer": "C"} | {f"image_{n}": image(n) for n in (1, 2, 3)}
    put_parquet(raw / "medframeqa/data/test-0.parquet", [row])
    row = {"question": "What is shown?", "gt_answer": "cyst", "option_A": "cyst", "option_B": "nodule", "image_path": "Images/A/1.png"}
    put(raw / "omnimedvqa_open/QA_information/Open-access/A.json", json.dumps([row]))
    put(raw / "omnimedvqa_open/Images/A/1.png", image(0)["bytes"])
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


def evaluated_prompts(run: Path, root: Path, names: list[str], images: list[str], *more: str) -> dict[str, list[str]]:
    """All prompts of `src.evaluate` in order, by benchmark and condition."""
    words = [f"run={run.name}", f"outputs={run.parent}", f"data_root={root}", f"benchmarks=[{','.join(names)}]", "max_seq_len=512"]
    words += [f"images=[{','.join(images)}]", "resamples=10", "max_new_tokens=2", "accelerator=cpu", *more]
    prompts: dict[str, list[str]] = {}

    def record_request(record, *, prompter, **kwargs):
        request = make_request(record, prompter=prompter, **kwargs)
        list(prompts.values())[-1].append(prompter.tokenizer.decode(prompter.prefix(len(request.images)) + request.prompt))
        return request

    def record_condition(test, condition, *args, **kwargs):
        prompts[f"{test.name} {condition}"] = []
        return answer_condition(test, condition, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "make_request", record_request)
        patch.setattr(evaluate_module, "answer_condition", record_condition)
        evaluate(to_typed(EvaluateConfig, compose("evaluate", words)))
    return prompts


@pytest.fixture(scope="module")
def prompts(run, root) -> dict[str, list[str]]:
    return evaluated_prompts(run, root, list(PROMPTS), ["real", "blank", "none"])


def test_every_question_benchmark_has_its_prompt_here():
    names = {path.stem for path in benchmark.FOLDER.glob("*.yaml") if "source" in OmegaConf.load(path)}
    assert names == PROMPTS.keys()


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_unchanged(prompts, name):
    assert prompts[f"{name} {'none' if name in TEXT_ONLY else 'real'}"][0] == PROMPTS[name]


@pytest.mark.parametrize("name", [name for name in PROMPTS if name not in TEXT_ONLY])
def test_condition_changes_the_images_and_not_the_text(prompts, name):
    assert prompts[f"{name} blank"] == prompts[f"{name} real"]
    assert prompts[f"{name} none"] == [prompt.replace("<image>", "") for prompt in prompts[f"{name} real"]]


def test_question_without_options_is_answered_by_generation(prompts, run):
    assert prompts["mmmu_med real"][1] == f"<s>{PICTURE * 2}Question: What dose is shown in <image 1>?\nAnswer:"
    chosen, free = read_predictions(run / "predictions/mmmu_med.real.jsonl")
    assert chosen["prediction"] in chosen["choices"] == ["a", "b"]
    assert "prediction_unnormalised" in chosen
    assert not {"choices", "prediction_unnormalised"} & free.keys()
    assert (free["references"], free["slices"]) == (["2", "2 mg"], {"subject": "Pharmacy"})


def test_disjoint_benchmark_excludes_only_the_shared_image(prompts):
    assert len(prompts["vqa_rad real"]) == 2
    assert prompts["vqa_rad_disjoint real"] == prompts["vqa_rad real"][1:]


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_text_only_benchmark_is_evaluated_once_without_images(prompts, name):
    assert [key for key in prompts if key.startswith(f"{name} ")] == [f"{name} none"]


@pytest.mark.parametrize("name", TEXT_ONLY)
@pytest.mark.parametrize("condition", ["real", "shuffled", "blank"])
def test_text_only_benchmark_rejects_image_conditions(run, root, name, condition):
    with pytest.raises(UserError, match=rf"images=\['{condition}'\]: benchmark '{name}' has no images; add 'none'") as error:
        evaluated_prompts(run, root, [name], [condition])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_text_only_benchmark_has_no_image_under_any_condition(root, name):
    """Also where the check of the conditions is bypassed."""
    test = benchmark.read_benchmark(name, root=root)
    for condition, rows in (("real", test.rows), ("blank", None), ("none", None)):
        ((_, pixels),) = condition_images(test, [0], condition, rows, mean=torch.full((3, 1, 1), 0.5), size=32, exact=False)
        assert pixels == []


def test_variants_are_asked_in_pinned_words_and_scored_from_their_files(run, root, tmp_path):
    names = ["pmc_vqa", "vqa_rad", "pathvqa", "medqa"]
    prompts = evaluated_prompts(run, root, names, ["real", "none"], "variants=[orders,prompts]")
    start = f"<s>{PICTURE}Question: "
    assert prompts["pmc_vqa order1 real"] == [f"{start}What uptake is seen?\nA: Focal\nB: None\nC: A and B\nD: Diffuse\nAnswer:"]
    assert prompts["pmc_vqa order3 real"] == [f"{start}What uptake is seen?\nA: A and B\nB: Diffuse\nC: Focal\nD: None\nAnswer:"]
    assert "medqa order3 none" in prompts
    assert "pathvqa order1 real" not in prompts
    options = "\nA: Diffuse\nB: Focal\nC: None\nD: A and B\nAnswer:"
    wordings = {
        "pmc_vqa": [f"What uptake is seen? Choose one of the options.{options}", f"Which option is correct? What uptake is seen?{options}"],
        "vqa_rad": ["is there a fracture? Answer yes or no.\nAnswer:", "Yes or no: is there a fracture?\nAnswer:"],
        "pathvqa": ["what is present? Answer briefly.\nAnswer:", "Please answer this question: what is present?\nAnswer:"],
    }
    wordings["pmc_vqa"].append(f"What uptake is seen? Only one of these options is right.{options}")
    wordings["vqa_rad"].append("is there a fracture? Reply with one word, yes or no.\nAnswer:")
    wordings["pathvqa"].append("what is present? Give only the answer, without an explanation.\nAnswer:")
    for name, texts in wordings.items():
        assert [prompts[f"{name} prompt{n} real"][0] for n in (1, 2, 3)] == [start + text for text in texts]
    result = json.loads((run / "evaluate.json").read_text())["metrics"]
    files = {order: read_predictions(run / f"predictions/pmc_vqa.{order}.jsonl") for order in ("real", "order1", "order2", "order3")}
    right = [line["prediction"] == "Focal" for (line,) in files.values()]
    assert {line["id"] for (line,) in files.values()} == {files["real"][0]["id"]}
    assert result["vqa/pmc_vqa/orders/all/accuracy"]["value"] == sum(right) / 4
    assert result["vqa/pmc_vqa/orders/all/every_order"]["value"] == float(all(right))
    assert {"lowest", "highest"} < result["vqa/vqa_rad/prompts/all/exact"].keys()
    for path in (run / "predictions").glob("pmc_vqa.order*.jsonl"):  # edited answers are scored, not asked again
        path.write_text(json.dumps(read_predictions(path)[0] | {"prediction": "Focal"}) + "\n")
    assert evaluated_prompts(run, root, names, ["real", "none"], "variants=[orders]") == {key: [] for key in prompts if "prompt" not in key}
    again = json.loads((run / "evaluate.json").read_text())["metrics"]
    assert again["vqa/pmc_vqa/orders/all/accuracy"]["value"] == (3 + right[0]) / 4
    words = [f"predictions={run}/predictions/pmc_vqa.order1.jsonl", f"outputs={tmp_path}", "resamples=10", "benchmarks=pmc_vqa"]
    folder = score_predictions(to_typed(EvaluateConfig, compose("evaluate", [*words, f"data_root={root}"])))
    assert json.loads((folder / "evaluate.json").read_text())["metrics"]["vqa/pmc_vqa/real/all/accuracy"]["value"] == 1
