"""The judge of saved predictions, against a local server: verdicts, errors, budget, and continuation by the same command."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from src.commands.score import score_predictions
from src.config.evaluate import EvaluateConfig, check_evaluate_config
from src.evaluation.judge import reject_credentialed
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

QUESTIONS = [("lung", "the lung"), ("heart", "heart"), ("rib", "liver"), ("no", "No"), ("yes", "normal")]  # reference and prediction


class Server(ThreadingHTTPServer):
    """Accepts answers that contain the reference. `mode` is ok, nonsense, error or silent; `prompts` are the requests so far."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.prompts, self.headers = "ok", [], []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.prompts.append(prompt)
        self.server.headers.append(self.headers["Authorization"])
        if self.server.mode == "silent":
            self.server.released.wait(30)  # until the client has given up
            return
        fields = dict(line.split(": ", 1) for line in prompt.splitlines() if ": " in line)
        right = fields["Reference answer"].lower() in fields["Answer"].lower()
        text = "It may be so." if self.server.mode == "nonsense" else f"<think>x</think><judge>{0 if right else 1}</judge>"
        self.send_response(500 if self.server.mode == "error" else 200)
        self.end_headers()
        reply = {"choices": [{"message": {"content": text}}]} if body["model"] == "m" else ["not a completion"]
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run_judge(tmp_path, server):
    """Scores the predictions with a judge; returns what the command wrote. A keyword replaces a key of `judge`."""
    file = tmp_path / "a.jsonl"
    lines = [{"id": str(n), "question": "what?", "references": [ref], "prediction": answer} for n, (ref, answer) in enumerate(QUESTIONS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(**keys) -> dict:
        keys = {"url": server.url, "model": "m"} | keys
        words = [f"predictions={file}", f"outputs={tmp_path}/out", "resamples=9", *(f"judge.{key}={value}" for key, value in keys.items())]
        config = to_typed(EvaluateConfig, compose("evaluate", words))
        check_evaluate_config(config)
        return json.loads((score_predictions(config) / "evaluate.json").read_text())

    run.verdicts = tmp_path / "out" / "a" / "predictions" / "file.judged.jsonl"
    return run


def test_judge_is_off_by_default():
    judge = to_typed(EvaluateConfig, compose("evaluate", ["predictions=a.jsonl"])).judge
    assert (judge.url, judge.model) == (None, None)


def test_verdicts_are_scored_and_compared_with_exact_match(run_judge, server, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "key")
    result = run_judge()
    out = capsys.readouterr().out
    tokens = sum(map(len, server.prompts)) // 4
    assert f"judge: 5 requests to {server.url} (m), about {tokens:,} tokens to read and 300 to write (estimates); 0 verdicts" in out
    assert "judge m: 3 of 5 answers are right; it agrees with exact match on 100.0% (right by the judge only 0" in out
    assert {key: result["judge"][key] for key in ("both", "judge_only", "exact_only", "neither")} == {
        "both": 3,  # exact match removes 'the'
        "judge_only": 0,
        "exact_only": 0,
        "neither": 2,
    }
    assert set(server.headers) == {"Bearer key"}
    assert result["scorers"]["file"]["judged_medevalkit"] == 3 / 5  # 'no' by rule, 'lung' and 'heart' by the judge; 'normal' is no
    assert len(run_judge.verdicts.read_text().splitlines()) == 5
    run_judge()
    assert len(server.prompts) == 5  # nothing is asked again
    run_judge.verdicts.write_text(run_judge.verdicts.read_text()[:-5])  # as a kill leaves it
    assert run_judge()["judge"]["both"] == 3
    assert len(server.prompts) == 6


def test_budget_stops_and_the_same_command_continues(run_judge, server):
    with pytest.raises(UserError, match=r"judge.budget=2: 2 requests were sent and 3 answers have no verdict; .* run the same command"):
        run_judge(budget=2)
    with pytest.raises(UserError, match="2 requests were sent and 1 answers"):
        run_judge(budget=2)
    assert run_judge(budget=2)["judge"]["both"] == 3
    assert len(server.prompts) == len(set(server.prompts)) == 5


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("nonsense", "judge.model=m: 5 replies in a row have no"),
        ("error", "refused with status 500"),
        ("silent", "no reply within judge.t"),
    ],
)
def test_failing_judge_ends_with_one_line_and_keeps_the_verdicts(run_judge, server, mode, message):
    server.mode = mode
    with pytest.raises(UserError, match=message) as error:
        run_judge(timeout=0.2 if mode == "silent" else 60)
    assert "run the same command again" in str(error.value)
    assert "\n" not in str(error.value)
    assert run_judge.verdicts.read_text() == ""
    server.mode = "ok"
    assert run_judge()["judge"]["both"] == 3


def test_judge_that_is_down_is_reported(run_judge):
    with pytest.raises(UserError, match=r"judge.url=http://127.0.0.1:1/v1: no connection \(ConnectError\); start the server"):
        run_judge(url="http://127.0.0.1:1/v1")


def test_single_unreadable_reply_counts_as_wrong_and_is_asked_again(run_judge, server, monkeypatch, capsys):
    monkeypatch.setattr("src.evaluation.judge.MAX_UNREADABLE", 9)
    result = run_judge(model="other")  # the server answers without choices
    assert (result["judge"]["unreadable"], result["judge"]["exact_only"]) == (5, 3)
    assert "5 replies have no <judge>0</judge>" in capsys.readouterr().out
    run_judge(model="other")
    assert len(server.prompts) == 10


def test_texts_of_credentialed_data_stay_on_this_machine():
    with pytest.raises(UserError, match=r"texts of credentialed data \(mimic_cxr\), which must not leave this machine"):
        reject_credentialed(["mimic_cxr", "slake"], {}, "https://api.example.com/v1")
    reject_credentialed(["mimic_cxr"], {}, "http://localhost:8000/v1")
    reject_credentialed(["slake"], {}, "https://api.example.com/v1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predictions=a.jsonl", "judge.url=http://x/v1"], "judge.url, judge.model: only one is given"),
        (["run=mini", "judge.url=http://x/v1", "judge.model=m"], "judge.url: a judge reads saved predictions"),
        (["predictions=a.jsonl", "judge.url=x", "judge.model=m"], "judge.url=x: not an address"),
        (["predictions=a.jsonl", "judge.budget=0"], "judge.budget must be at least 1"),
    ],
)
def test_contradicting_keys_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        check_evaluate_config(to_typed(EvaluateConfig, compose("evaluate", words)))
