"""An optional judge: an OpenAI-compatible endpoint decides for each saved answer whether it means the same as the reference.

Every verdict is appended to a file beside the predictions as soon as it arrives, so the same command continues after an error. The task and
the format of the reply are those of MedEvalKit (`get_compare_messages` in utils/utils.py, commit 9b12e3b: 0 is right, 1 is wrong); the
wording is ours.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from src.config.evaluate import JudgeConfig
from src.data.credentialed import is_credentialed
from src.evaluation.predictions_file import read_predictions, write_predictions
from src.metrics.vqa import exact
from src.runtime.errors import UserError
from src.runtime.progress import Progress

PROMPT = """Decide whether an answer to a question about a medical image is right. It is right if it means the same as the reference answer.

Question: {question}
Reference answer: {references}
Answer: {prediction}

Reply in this format, with 0 for a right and 1 for a wrong answer:
<think>one short sentence</think>
<judge>0</judge>"""
VERDICT = re.compile(r"<judge>\s*([01])\s*</judge>")
CHARACTERS_PER_TOKEN = 4  # a common estimate for English text
REPLY_TOKENS = 60  # estimate of a reply in this format
MAX_TOKENS = 256
MAX_UNREADABLE = 5  # replies in a row without a verdict, after which the endpoint is not asked further


def reject_credentialed(sources: Iterable[str], manifest: dict, url: str) -> None:
    """Raises `UserError` for answers about credentialed data and a server on another machine, which would receive their texts."""
    names = sorted(name for name in sources if is_credentialed(name, manifest))
    if names and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(
            f"judge.url={url}: would receive texts of credentialed data ({', '.join(names)}), which must not leave this machine; "
            "start the judge on this machine and give http://localhost:PORT/v1"
        )


def judge_items(items: list[dict], config: JudgeConfig, path: Path) -> tuple[list[dict], dict]:
    """The items with `judged`, and a summary of the verdicts. `path` is the file of verdicts; those in it are not asked again.

    A reply without a verdict counts as wrong, as in MedEvalKit, and is asked again by the next command. Raises `UserError` if the endpoint
    fails, is too slow, gives no verdict several times in a row, or if `judge.budget` is used up; the verdicts until then are in the file.
    """
    digests = [_digest(item, config) for item in items]
    known = {line["id"]: line["judged"] for line in read_predictions(path)}
    requests = {digest: _prompt(item) for digest, item in zip(digests, items, strict=True) if digest not in known}
    tokens = sum(map(len, requests.values())) // CHARACTERS_PER_TOKEN
    print(
        f"judge: {len(requests):,} requests to {config.url} ({config.model}), about {tokens:,} tokens to read and "
        f"{REPLY_TOKENS * len(requests):,} to write (estimates); {len(known):,} verdicts are in {path}"
    )
    write_predictions(path, [{"id": digest, "judged": verdict} for digest, verdict in known.items()])  # drops an incomplete last line
    unreadable = 0
    with path.open("a") as file:
        for digest, verdict in _ask(requests, config, path):
            if verdict is None:
                unreadable += 1
                continue
            known[digest] = verdict
            file.write(json.dumps({"id": digest, "judged": verdict}) + "\n")
            file.flush()
    if unreadable:
        print(f"judge: {unreadable:,} replies have no <judge>0</judge> or <judge>1</judge> and count as wrong; the same command asks again")
    judged = [{**item, "judged": known.get(digest, False)} for digest, item in zip(digests, items, strict=True)]
    return judged, agreement(judged) | {"model": config.model, "unreadable": unreadable}


def _ask(requests: dict[str, str], config: JudgeConfig, path: Path) -> Iterator[tuple[str, bool | None]]:
    """Digest and verdict of each request, None for a reply without a verdict."""
    key = os.environ.get("JUDGE_API_KEY")
    again = f"the verdicts until here are in {path}; run the same command again to continue"
    unreadable = 0
    with (
        httpx2.Client(timeout=config.timeout, headers={"Authorization": f"Bearer {key}"} if key else {}) as client,
        Progress(total=len(requests), desc="judge", unit="answer", disable=not requests) as progress,
    ):
        for count, (digest, prompt) in enumerate(requests.items()):
            if config.budget is not None and count >= config.budget:
                left = len(requests) - count
                raise UserError(f"judge.budget={config.budget}: {count:,} requests were sent and {left:,} answers have no verdict; {again}")
            try:
                reply = _reply(client, prompt, config)
            except httpx2.TimeoutException:
                raise UserError(f"judge.url={config.url}: no reply within judge.timeout={config.timeout:g} seconds; {again}") from None
            except httpx2.HTTPStatusError as error:
                raise UserError(f"judge.url={config.url}: refused with status {error.response.status_code}; {again}") from None
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise UserError(f"judge.url={config.url}: no connection ({type(error).__name__}); start the server; {again}") from None
            verdicts = VERDICT.findall(reply)
            unreadable = 0 if verdicts else unreadable + 1
            if unreadable == MAX_UNREADABLE:
                raise UserError(
                    f"judge.model={config.model}: {unreadable} replies in a row have no <judge>0</judge> or <judge>1</judge>; "
                    f"give a model that follows instructions; {again}"
                )
            yield digest, verdicts[-1] == "0" if verdicts else None
            progress.update()


def _reply(client: httpx2.Client, prompt: str, config: JudgeConfig) -> str:
    """The text of the reply; empty if the response is not that of a chat completion."""
    body = {"model": config.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": MAX_TOKENS}
    response = client.post(f"{(config.url or '').rstrip('/')}/chat/completions", json=body)
    response.raise_for_status()
    try:
        return str(response.json()["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError):
        return ""


def _prompt(item: dict) -> str:
    return PROMPT.format(question=item["question"], references=" or ".join(item["references"]), prediction=item["prediction"])


def _digest(item: dict, config: JudgeConfig) -> str:
    """Identifies a verdict by all that it depends on."""
    fields = [item["question"], item["references"], item["prediction"], config.model, PROMPT]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]


def agreement(items: list[dict]) -> dict:
    """Numbers of answers that the judge and `exact` accept: both, one of them, or neither."""
    pairs = [(item["judged"], bool(exact(item["prediction"], item["references"]))) for item in items]
    counts = {"both": (True, True), "judge_only": (True, False), "exact_only": (False, True), "neither": (False, False)}
    return {name: pairs.count(pair) for name, pair in counts.items()}


def agreement_text(counts: dict) -> str:
    both, judge, match, neither = (counts[name] for name in ("both", "judge_only", "exact_only", "neither"))
    total = both + judge + match + neither
    return (
        f"judge {counts['model']}: {both + judge:,} of {total:,} answers are right; it agrees with exact match on "
        f"{100 * (both + neither) / total:.1f}% (right by the judge only {judge:,}, by exact match only {match:,})"
    )
