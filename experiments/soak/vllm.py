"""An export served by vLLM on the CPU, asked the same questions as the run through its OpenAI-compatible interface."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from experiments.soak.environments import python_of
from experiments.soak.exported import copy_run, export_hf, image_benchmark, offline
from experiments.soak.trial import Row
from src.data.image_conversion import to_rgb
from src.data.prompt import options_text
from src.demo import free_port
from src.inference.query import Sampling, VQAQuery
from src.runtime.errors import UserError

QUESTIONS, MAX_NEW_TOKENS = 50, 64
SECONDS = 900  # until the server must answer
LOG = Path("data/soak/vllm.log")


def trial(model: str) -> list[Row]:
    python = python_of("vllm")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = copy_run(model, scratch)
        test = image_benchmark(source, limit=QUESTIONS)
        hf = export_hf(source, scratch)
        records = [test.shards[row] for row in test.rows]
        questions = [record.turns[-1][0] + options_text(record) for record in records]
        from src.inference.vqa_model import vqa_model_from_source

        trained, sampling = vqa_model_from_source(source), Sampling(MAX_NEW_TOKENS)
        queries = [VQAQuery(text, [open_rgb(data) for data in record.images]) for text, record in zip(questions, records, strict=True)]
        requests = [trained.prepare(query, sampling) for query in queries]
        answers = [answer.text for answer in trained.answers(queries, sampling)]
        options = ["--max-model-len", str(trained.prompter.budget)]
        with serve(python, hf, *options) as (url, start):
            theirs = [ask(url, text, record.images, banned_tokens(hf)) for text, record in zip(questions, records, strict=True)]
            images = [record.images for record in records[1:] + records[:1]]
            other = [ask(url, text, data, banned_tokens(hf)) for text, data in zip(questions, images, strict=True)]
    for number, answer in enumerate(answers):
        if answer != theirs[number].text:
            print(f"{test.items[number]['id']}: {questions[number]!r}: ours {answer!r}, vLLM {theirs[number].text!r}")
    count = len(answers)
    tokens = sum(one.prefix_ids + one.prompt == their.prompt for one, their in zip(requests, theirs, strict=True))
    equal = sum(answer == their.text for answer, their in zip(answers, theirs, strict=True))
    changed = sum(one.text != two.text for one, two in zip(theirs, other, strict=True))
    return [
        Row("vLLM: ready after, s", f"{start:.0f}"),
        Row("vLLM: median time of an answer, s", f"{statistics.median(their.seconds for their in theirs):.2f}"),
        Row(f"{test.name}: prompts with the tokens of src.ask", str(tokens), str(count), tokens == count),
        Row(f"{test.name}: greedy answers equal to those of src.ask", str(equal), str(count), equal == count),
        Row("answers that another image changes", str(changed), "1 or more", changed > 0),
    ]


@dataclass
class ServedAnswer:
    """`prompt` has the token ids, with those of the image."""

    text: str
    prompt: list[int]
    seconds: float


@contextlib.contextmanager
def serve(python: Path, hf: Path, *options: str) -> Iterator[tuple[str, float]]:
    """(address, seconds to the first answer) of a vLLM server. Raises `UserError` with the last error of its log if it does not start.

    vLLM's own Llava has CLIP, SigLIP and Pixtral towers only; its transformers backend takes every tower that the export writes.
    """
    port, started = free_port("127.0.0.1"), time.perf_counter()
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]  # the command vllm needs the metadata of the package vllm
    command += ["--model", str(hf), "--served-model-name", "export", "--model-impl", "transformers"]
    command += ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port), *options]
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as log:
        environment = offline(VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        while not answers_health(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.perf_counter() > started + SECONDS:
                raise UserError(f"vLLM did not serve {hf}: {last_error(LOG.read_text())}; the whole log is {LOG}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", time.perf_counter() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that outlive the server


def answers_health(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def last_error(log: str) -> str:
    """The last line that names an exception, without the prefix of vLLM's logger."""
    lines = [line for line in log.splitlines() if re.search(r"(Error|Exception): ", line)] or log.splitlines() or ["its log is empty"]
    return re.sub(r"^.*?(?=\w*(?:Error|Exception): )", "", lines[-1], count=1).strip()


def ask(url: str, question: str, images: list[bytes], banned: list[int]) -> ServedAnswer:
    """A greedy answer. vLLM does not read `suppress_tokens` of generation_config.json, so the request has them."""
    content = [{"type": "image_url", "image_url": {"url": data_uri(data)}} for data in images] + [{"type": "text", "text": question}]
    body = {"model": "export", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": MAX_NEW_TOKENS}
    body |= {"logit_bias": {str(token): -100 for token in banned}, "return_token_ids": True}
    started = time.perf_counter()
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    if answer.status_code != 200:
        raise UserError(f"vLLM refused a question with status {answer.status_code}: {answer.text[:500]}")
    result = answer.json()
    text = (result["choices"][0]["message"]["content"] or "").strip()
    return ServedAnswer(text, result["prompt_token_ids"], time.perf_counter() - started)


def banned_tokens(hf: Path) -> list[int]:
    return json.loads((hf / "generation_config.json").read_text())["suppress_tokens"]


def data_uri(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f"data:image/{str(image.format).lower()};base64,{base64.b64encode(data).decode()}"


def open_rgb(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)
