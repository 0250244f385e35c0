"""Progress lines, tables and messages of libraries in the output of commands."""

import io
import re
import sys

import pytest
from rich.table import Table

from src.runtime import progress
from src.runtime.cli import mute_other_ranks
from src.runtime.errors import report_user_errors
from src.runtime.progress import Progress
from src.runtime.tables import print_table
from src.train import train
from tests import processes
from tests.runs import finish
from tests.test_transfer import write_set


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A list with one element: the time that tqdm reads, in seconds."""
    time = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: time[0])
    return time


def replace_stderr(monkeypatch, *, terminal: bool) -> Stream:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_progress_without_a_terminal_writes_a_line_every_interval(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=False)
    with Progress(total=2000, desc="train", unit="step", initial=1000) as steps:
        for n in range(1, 8):
            clock[0] = 10.0 * n
            steps.set_postfix_str(f"loss {n}", refresh=False)
            steps.update(10)
    assert stream.getvalue().splitlines() == [
        "train: step 1,030/2,000, 1 step/s, loss 3, 00:30 elapsed, 16:10 left",
        "train: step 1,060/2,000, 1 step/s, loss 6, 01:00 elapsed, 15:40 left",
        "train: step 1,070/2,000, 1 step/s, loss 7, 01:10 elapsed, 15:30 left",
    ]


def test_progress_over_an_iterable_writes_lines(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=False)
    for n in Progress(iter(range(4)), unit="file"):
        clock[0] = 30.0 * (n + 1)
    assert stream.getvalue().splitlines() == [f"file {n}, 0.0333 file/s, {n // 2:02}:{n % 2 * 30:02} elapsed" for n in (1, 2, 3, 4)]


def test_progress_in_bytes_uses_units(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=False)
    with Progress(total=4_000_000, unit="B", unit_scale=True, desc="a.bin") as received:
        clock[0] = 40.0
        received.update(1_000_000)
    assert stream.getvalue() == "a.bin: 1.00M/4.00MB, 25.0kB/s, 00:40 elapsed, 02:00 left\n"


def test_progress_of_a_short_task_writes_nothing(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=False)
    with Progress(total=2) as short:
        clock[0] = 29.0
        short.update(2)
    assert stream.getvalue() == ""


def test_progress_report_writes_a_line_at_once_and_restarts_the_interval(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=False)
    with Progress(total=9, unit="step") as steps:
        clock[0] = 20.0
        steps.update()
        steps.report()
        clock[0] = 40.0
        steps.update()
        clock[0] = 50.0
        steps.update()
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == ["step 1/9", "step 3/9"]


def test_progress_on_a_terminal_draws_a_bar(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=True)
    with Progress(total=2, desc="train") as steps:
        clock[0] = 1.0
        steps.update(2)
    assert "\rtrain: 100%|" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_progress_is_written_by_the_first_rank_only(clock, monkeypatch):
    stream = replace_stderr(monkeypatch, terminal=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Progress(total=2) as steps:
        clock[0] = 60.0
        steps.update()
        steps.report()
    assert stream.getvalue() == ""


@pytest.mark.slow
def test_train_writes_a_line_per_validation_with_loss_rate_and_time_left(configure, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", float("inf"))
    train(configure())
    first, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("train"))
    pattern = r"train: step {}/6, \S+ step/s, loss \d\.\d+, val \d\.\d+, \S+ samples/s, \S+ tokens/s, \d\d:\d\d elapsed, \d\d:\d\d left"
    assert re.fullmatch(pattern.format(3), first)
    assert re.fullmatch(pattern.format(6), last)


def test_train_writes_a_line_per_interval(configure, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    train(configure())
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    steps = [line for line in lines if line.startswith("train")]
    assert steps == [f"train: step {n}/6" for n in range(1, 7)]
    assert any(line.startswith("validation losses: batch") for line in lines)
    assert any(line.startswith("validation answers: question") for line in lines)


def test_stdout_of_a_command_is_written_line_by_line(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))

    @report_user_errors
    def main() -> None:
        print("before the progress lines")
        assert raw.getvalue() == b"before the progress lines\n"

    main()


def test_stdout_of_other_ranks_is_dropped(monkeypatch, capsys):
    with mute_other_ranks():
        print("once")
    monkeypatch.setenv("RANK", "1")
    with mute_other_ranks():
        print("twice")
    assert capsys.readouterr().out == "once\n"


LONG = [f"a_benchmark_with_a_long_name_{n}" for n in range(5)]


def wide_table() -> Table:
    table = Table("source", "leaks into", "records", box=None, caption=f"tokens counted by {'/'.join(LONG)}")
    table.add_row("vqa_med_2019", ", ".join(LONG), "1,234")
    return table


def test_table_in_a_file_has_one_complete_line_per_row(capsys):
    print_table(wide_table())
    head, row, caption = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["source", "leaks", "into", "records"]
    assert row == ["vqa_med_2019", *(f"{name}," for name in LONG[:-1]), LONG[-1], "1,234"]
    assert caption == ["tokens", "counted", "by", "/".join(LONG)]


def test_table_on_a_narrow_terminal_truncates_no_name(monkeypatch):
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")  # rich ignores COLUMNS on a dumb terminal
    print_table(wide_table())
    rows = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()[:-1]  # without the codes for bold
    assert max(map(len, rows)) <= 40
    assert "\N{HORIZONTAL ELLIPSIS}" not in stream.getvalue()
    assert "vqa_med_2019" in "".join(row.split(" a_")[0].strip() for row in rows)


def printed_lines(module: str, overrides: list[str], log) -> list[str]:
    """The lines that a command prints in a separate process, as if started from a shell."""
    assert processes.wait([processes.start_command(module, overrides, log, {})]) == [0], log.read_text()
    return log.read_text().splitlines()


def library_lines(lines: list[str]) -> list[str]:
    """Lines that match none of the patterns of this repository: warnings, tips and progress bars of libraries."""
    own_patterns = (
        r"part +parameters +trainable +lr +weights|(vision|projector|language) +[\d,]+ +[\d,]+ +.*"  # train
        r"|data [0-9a-f]{12}: .*|train: step .*|validation \w+: .*|\S+/result\.json: .*"
        r"|loss: nats per supervised token; \d+\.\d for a model that knows nothing \([\d,]+ tokens\)"
        r"|next: .*|held out of training for validation: .*|note: other processes keep .*"
        r"|\w+ +95% intervals by bootstrap .*|\w+ +\w+ +\w+ +-?\d\.\d{3} .*|\w+ +\w+ +\d+ answers .*"  # evaluate
        r"|\S+/evaluate\.json; next: .*|\w+ (real|blank|shuffled|none): question .*"
        r"|alpha: .* audit .*|alpha: .* training .*|warning: no audit .*"  # the shards of the tests have no audit
        r"|dots +\S+ +\w+ +[\d.]+ s|dots +.* +[\d.]+ +\[.*\] +n=6|macro-F1 with .*|dots: .*|logistic on .*"  # transfer
        r"|logits of the reloaded export differ .*|\S+/export"  # export
        r"|note: no image was given; .*|note: Trained on .*"  # ask
    )
    return [line for line in lines if not re.fullmatch(own_patterns, line)]


@pytest.mark.slow
def test_train_prints_no_library_messages_and_each_line_once(words, tmp_path):
    """Frozen batch norms, activation checkpointing and a second rank each make a library print a message."""
    others = [word for word in words if not word.startswith(("vision.architecture", "+vision.architecture_kwargs"))]
    overrides = [*others, "vision.architecture=test_resnet", "trainer.devices=2", "trainer.activation_checkpointing=full"]
    logs = [tmp_path / f"log.{rank}" for rank in range(2)]
    environments = processes.environments(world=2)
    ranks = [processes.start_command("src.train", overrides, log, environment) for log, environment in zip(logs, environments, strict=True)]
    assert processes.wait(ranks) == [0, 0], [log.read_text() for log in logs]
    first, second = (log.read_text().splitlines() for log in logs)
    assert library_lines(first) == []
    assert len([line for line in first if line.startswith("data ")]) == 1
    assert second == []


@pytest.mark.parametrize("command", ["evaluate", "transfer", "export", "plan", "ask"])
@pytest.mark.slow
def test_command_prints_no_library_messages(words, tmp_path, command):
    folder, _ = finish(words)
    write_set(tmp_path / "raw" / "dots")
    outputs = f"outputs={folder.parent}"
    overrides = {
        "evaluate": ["run=tiny", outputs, "benchmarks=[alpha]", "resamples=20", "max_new_tokens=2", "accelerator=cpu"],
        "transfer": ["encoder=[run:tiny]", outputs, "benchmarks=[dots]", f"raw={tmp_path}/raw", "protocol=[finetune]", "seeds=1"]
        + ["resamples=20", "threads=1", "finetune.steps=2", "finetune.warmup=1", "accelerator=cpu"],
        "export": ["run=tiny", outputs, f"out={tmp_path}/export"],
        "plan": words,
        "ask": ["model=run:tiny", outputs, "question=what is near the heart?", "max_new_tokens=2", "accelerator=cpu"],
    }
    lines = printed_lines(f"src.{command}", overrides[command], tmp_path / "log")
    library_message = re.compile(r"[Ww]arning|Tip:|deprecated|GPU available|\bit/s|LOAD REPORT|site-packages|`Trainer")
    assert [line for line in lines if library_message.search(line)] == []
    assert command in ("plan", "ask") or library_lines(lines) == []
