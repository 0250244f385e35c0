"""The trials that serve and score an export with other programs: what they send, write and refuse, without those programs."""

import base64
import importlib.util
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from experiments.soak import environments, exported, lmms, vllm
from experiments.soak.lmms_task import write_task
from src.data.image_transform import decode_image
from src.evaluation.benchmark import read_benchmark
from src.metrics.vqa import exact
from src.runtime.errors import UserError


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_request_has_images_greedy_decoding_and_banned_tokens(monkeypatch):
    def post(url: str, *, json: dict, timeout: float) -> httpx.Response:
        sent.append((url, json))
        return httpx.Response(200, json={"choices": [{"message": {"content": " lung\n"}}], "prompt_token_ids": [1, 5]})

    sent: list[tuple[str, dict]] = []
    monkeypatch.setattr(httpx, "post", post)
    answer = vllm.ask("http://127.0.0.1:1", "which organ?", [png()], [7, 9])
    assert (answer.text, answer.prompt) == ("lung", [1, 5])
    ((url, body),) = sent
    image, text = body["messages"][0]["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert (url, kind, base64.b64decode(data)) == ("http://127.0.0.1:1/v1/chat/completions", "data:image/png;base64", png())
    assert text == {"type": "text", "text": "which organ?"}
    assert (body["temperature"], body["logit_bias"]) == (0, {"7": -100, "9": -100})


def test_server_that_does_not_start_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "LOG", tmp_path / "vllm.log")
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho '(EngineCore pid=1) ERROR [core.py:1] ValueError: no such tower'\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match=r"^vLLM did not serve export: ValueError: no such tower; the whole log is "):
        with vllm.serve(program, Path("export")):
            pass


def test_last_error_is_the_last_exception_or_else_the_last_line():
    assert vllm.last_error("KeyError: 1\nModuleNotFoundError: no x\nbye\n") == "ModuleNotFoundError: no x"
    assert vllm.last_error("loading\nKilled\n") == "Killed"
    assert vllm.last_error("") == "its log is empty"


@pytest.mark.parametrize("size", [None, 32])
def test_task_has_the_questions_pixels_and_score_of_the_evaluation(shards, tmp_path, size):
    test = read_benchmark("alpha", root=shards)
    name = write_task(test, tmp_path, size=size)

    class Loader(yaml.SafeLoader): ...

    Loader.add_constructor("!function", lambda loader, node: node.value)
    task = yaml.load((tmp_path / "alpha.yaml").read_text(), Loader)
    assert (task["task"], task["generation_kwargs"]["do_sample"]) == (name, False)
    spec = importlib.util.spec_from_file_location("functions", tmp_path / "functions.py")
    functions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functions)
    for key in ("doc_to_visual", "doc_to_text", "process_results"):
        assert callable(getattr(functions, task[key].removeprefix("functions.")))
    docs = pq.read_table(task["dataset_kwargs"]["data_files"]["test"]).to_pylist()
    assert [doc["id"] for doc in docs] == test.ids
    for doc, item, row in zip(docs, test.items, test.rows, strict=True):
        assert (functions.question(doc), doc["references"]) == (item["question"], item["references"])
        for prediction in (item["references"][0].upper(), "something else"):
            assert functions.process_results(doc, [prediction]) == {"exact_match": exact(prediction, item["references"])}
        (image,), (data,) = functions.images(doc), test.shards[row].images
        expected = decode_image(data, size=32).transpose(1, 2, 0) if size else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(image), expected)


def test_export_with_several_end_tokens_is_refused_for_lmms_eval(tmp_path):
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 2}))
    lmms.check_ends(tmp_path)
    file.write_text(json.dumps({"eos_token_id": [2, 5]}))
    with pytest.raises(UserError, match=r"end with one of the tokens \[2, 5\].*score it with src.evaluate"):
        lmms.check_ends(tmp_path)


@pytest.mark.parametrize(("dtype", "message"), [(None, "give run:NAME"), ("bfloat16", "give a run with language.dtype=float32")])
def test_model_that_cannot_be_compared_is_refused(tmp_path, monkeypatch, dtype, message):
    config = SimpleNamespace(language=SimpleNamespace(dtype=dtype)) if dtype else None
    monkeypatch.setattr(exported, "find_model", lambda model: SimpleNamespace(config=config))
    with pytest.raises(UserError, match=message):
        exported.copy_run("run:mini", tmp_path)


def test_every_package_of_an_environment_is_pinned():
    for name in environments.INHERITS:
        lines = (environments.PINS / f"{name}.txt").read_text().splitlines()
        assert lines
        assert all(line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), name


def test_environment_is_built_once_for_its_pins(tmp_path, monkeypatch):
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        commands.append(command)
        (tmp_path / "envs/vllm").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, "ROOT", tmp_path / "envs")
    monkeypatch.setattr(environments, "PINS", tmp_path)
    monkeypatch.setattr(environments, "_run", run)
    (tmp_path / "vllm.txt").write_text("torch==1\n")
    assert environments.python_of("vllm") == environments.python_of("vllm") == tmp_path / "envs/vllm/bin/python"
    assert [command[2] for command in commands] == ["venv", "pip", "pip"]
    (tmp_path / "vllm.txt").write_text("torch==2\n")
    environments.python_of("vllm")
    assert len(commands) == 6
