"""An export scored by lmms-eval on the test questions of a benchmark, against `src.evaluate` on the same run and questions."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from experiments.soak.environments import python_of
from experiments.soak.exported import copy_run, export_hf, image_benchmark, offline, run_command
from experiments.soak.lmms_task import write_task
from experiments.soak.trial import Row
from experiments.soak.vllm import last_error
from src.evaluation.predictions_file import read_predictions
from src.runtime.errors import UserError

MAX_NEW_TOKENS = 24
LOG, RESULTS = Path("data/soak/lmms.log"), Path("data/soak/lmms")


def trial(model: str) -> list[Row]:
    python = python_of("lmms")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = copy_run(model, scratch)
        assert source.config is not None
        test = image_benchmark(source)
        hf = export_hf(source, scratch)
        check_ends(hf)
        size = json.loads((hf / "processor_config.json").read_text())["image_processor"]["size"]["height"]
        task = write_task(test, scratch / "task", max_new_tokens=MAX_NEW_TOKENS, size=size, exact_decode=source.config.data.exact_decode)
        answers, their_score = run_lmms_eval(python, hf, task, scratch)
        theirs = dict(zip(test.ids, answers, strict=True))
        options = [f"benchmarks=[{test.name}]", "images=[real]", f"max_new_tokens={MAX_NEW_TOKENS}", "accelerator=cpu"]
        run_command(source, "evaluate", *options)
        ours = {line["id"]: line["prediction"] for line in read_predictions(source.folder / f"predictions/{test.name}.real.jsonl")}
        score = json.loads((source.folder / "evaluate.json").read_text())["metrics"][f"vqa/{test.name}/real/all/exact"]["value"]
    for key, prediction in ours.items():
        if theirs[key] != prediction:
            print(f"{key}: ours {prediction!r}, lmms-eval {theirs[key]!r}")
    count, distinct = len(test.rows), len(set(answers))
    equal = sum(theirs[key] == prediction for key, prediction in ours.items())
    return [
        Row(f"{test.name}: predictions equal to those of src.evaluate", str(equal), str(count), equal == count),
        Row(f"{test.name}: distinct predictions", str(distinct), "2 or more", distinct > 1),
        Row(f"{test.name}: exact match of lmms-eval", f"{their_score:.6f}", f"{score:.6f}", abs(their_score - score) < 1e-9),
    ]


def check_ends(hf: Path) -> None:
    """Raises `UserError` for an export whose answers lmms-eval would not end: it stops at the tokenizer's end of sequence only."""
    ends = json.loads((hf / "generation_config.json").read_text())["eos_token_id"]
    if isinstance(ends, list):
        raise UserError(
            f"{hf}: the answers of this run end with one of the tokens {ends} (prompt.template=chat), but llava_hf of lmms-eval stops at "
            "the tokenizer's end of sequence only; score it with src.evaluate, or serve it with vLLM, which reads generation_config.json"
        )


def run_lmms_eval(python: Path, hf: Path, task: str, scratch: Path) -> tuple[list[str], float]:
    """(predictions in the order of the task, exact match) of lmms-eval. Raises `UserError` with its last error if it fails."""
    command = [str(python), "-m", "lmms_eval", "eval", "--model", "llava_hf", "--tasks", task, "--include_path", str(scratch / "task")]
    command += ["--model_args", f"pretrained={hf},dtype=float32,device=cpu,device_map=cpu", "--batch_size", "1", "--log_samples"]
    command += ["--output_path", str(RESULTS)]
    shutil.rmtree(RESULTS, ignore_errors=True)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as log:
        environment = offline(PYTHONPATH=".", HF_HOME=str(scratch / "cache"), CUDA_VISIBLE_DEVICES="")
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    samples, results = (sorted(RESULTS.rglob(pattern)) for pattern in ("*_samples_*.jsonl", "*_results.json"))
    if code or not samples or not results:
        last = last_error(re.sub(r"\x1b\[\d+m", "", LOG.read_text()))
        raise UserError(f"lmms-eval failed with exit code {code}: {last}; the whole log is {LOG}")
    lines = sorted((json.loads(line) for line in samples[0].read_text().split("\n") if line), key=lambda line: line["doc_id"])
    score = json.loads(results[0].read_text())["results"][task]["exact_match,none"]
    return [line["filtered_resps"].strip() for line in lines], score
