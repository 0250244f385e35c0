"""experiments/bench/gpu*: order of the parts and their budget, tables, messages, and the whole at a small size on a CPU."""

import csv
import math
from collections import Counter
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from experiments.bench import gpu, gpu_generate, gpu_resume, gpu_train
from experiments.bench.gpu_budget import ASSUMED, Budget, Part, run_parts
from experiments.bench.gpu_generate import compare_generation
from experiments.bench.gpu_kernels import WARM_UP, StepProfiler, kernel_rows
from experiments.bench.gpu_resume import RunFolder, Training, split_seconds, training_words
from experiments.bench.gpu_setup import Bench, check_gpu
from experiments.bench.gpu_table import Row, Value, prepare, write
from experiments.bench.step_monitor import StepMonitor
from src.config.train import TrainConfig
from src.model.roofline import Accelerator, Kernel
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.training.trainer import build_trainer


def test_parts_run_in_order_of_value():
    everything = [part.name for part in gpu.parts(None, gpu.BenchGpuConfig())]
    assert everything == list(gpu.NAMES)
    assert everything[:4] == ["mix_ours_none", "mix_transformers", "mix_transformers_checkpointing", "mix_plain_none"]
    assert everything[-4:] == ["kernels", "memory", "generate", "resume"]
    assert [name for name in everything if name not in " ".join(gpu.BenchGpuConfig.__doc__.split())] == []
    assert {part.kind for part in gpu.parts(None, gpu.BenchGpuConfig())} == set(ASSUMED)
    some = gpu.BenchGpuConfig(parts=["resume", "even_ours_none", "mix_plain_none"])
    assert [part.name for part in gpu.parts(None, some)] == ["mix_plain_none", "even_ours_none", "resume"]
    assert all(part.name.startswith("even") for part in gpu.parts(None, gpu.BenchGpuConfig(lengths=["even"])))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_part_starts_only_if_the_newest_of_its_kind_would_still_fit():
    clock = Clock()

    def part(name: str, kind: str, seconds: float) -> Part:
        def run() -> list[str]:
            clock.now += seconds
            return [name]

        return Part(name, kind, run)

    parts = [part("a", "ours", 100), part("b", "ours", 1), part("c", "kernels", 45), part("d", "generate", 1), part("e", "kernels", 5)]
    budget = Budget(200, used=10, clock=clock)
    outcomes = list(run_parts(parts, budget))
    assert [outcome.rows for outcome in outcomes] == [["a"], [], ["c"], [], ["e"]]
    assert [outcome.seconds for outcome in outcomes] == [100, 0, 45, 0, 5]
    assert outcomes[1].skipped == "100 s expected, 90 s left"
    assert outcomes[3].skipped == f"{ASSUMED['generate']} s expected, 45 s left"
    assert budget.expected("kernels") == 5
    budget.add("kernels", 1, failed=True)
    assert budget.expected("kernels") == 5


@pytest.mark.parametrize(("error", "message"), [(UserError("out of memory"), "out of memory"), (KeyError("x"), "KeyError: 'x'")])
def test_parts_run_after_one_that_fails(error, message):
    def fail():
        raise error

    first, second = run_parts([Part("a", "ours", fail), Part("b", "ours", lambda: ["row"])], Budget(1000, clock=Clock()))
    assert (first.failed, first.rows) == (message, [])
    assert (second.failed, second.rows) == ("", ["row"])


def test_gpu_benchmark_lists_parts_that_were_left_out_or_failed(monkeypatch, tmp_path, capsys):
    def fail(bench):
        raise UserError("no room")

    monkeypatch.setattr(gpu.elementwise, "compiler_works", False)
    monkeypatch.setattr(gpu, "OTHERS", {"kernels": fail, "memory": lambda bench: bench.values("memory", layers=(2, "layers"))})
    with pytest.raises(SystemExit):
        gpu.main(["device=cpu", "size=small", f"out={tmp_path}/gpu.csv", "minutes=1.5", "parts=kernels,memory,mix_ours_none"], used=31)
    printed = capsys.readouterr()
    assert "mix_ours_none: left out, 60 s expected, 59 s left" in printed.out
    command = f"python -m experiments.bench.gpu device=cpu size=small out={tmp_path}/gpu.csv parts=mix_ours_none,memory"
    assert f"left out for lack of time: mix_ours_none, memory; only these: {command}\n" in printed.out
    assert "bench-gpu: parts failed: kernels (no room)" in printed.err
    assert "torch.compile does not work here" in printed.out
    assert "the numbers mean nothing" in printed.out


def test_gpu_benchmark_reports_bad_arguments(tmp_path, capsys):
    for arguments, message in [
        (["devise=cpu"], "unknown key 'devise'; did you mean 'device'?"),
        (["device=cpu", "lengths=eve"], "lengths='eve'; did you mean 'even'?"),
        (["device=cpu", "parts=kernel"], "parts='kernel'; did you mean 'kernels'?"),
        (["device=cpu", "size=small", "lengths=even", "parts=kernels"], "parts=kernels: none of them belongs to lengths=even"),
    ]:
        with pytest.raises(SystemExit):
            gpu.main([*arguments, f"out={tmp_path}/gpu.csv"])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "size", "accelerator", "precision"),
    [("cuda", "full", "gpu", "bf16-mixed"), ("cuda", "small", "gpu", "bf16-mixed"), ("cpu", "small", "cpu", "32-true")],
)
def test_training_runs_on_the_device_of_the_benchmark(tmp_path, device, size, accelerator, precision):
    (tmp_path / "shards" / "mix").mkdir(parents=True)
    settings = Bench(device, size, tmp_path).settings("mix")
    assert (settings.trainer.accelerator, settings.trainer.precision) == (accelerator, precision)
    assert (settings.vision.format == "scratch") == (size == "small")


def test_gpu_benchmark_explains_which_gpu_it_needs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU; use device=cpu size=small"):
        check_gpu("cuda", "full")
    properties = SimpleNamespace(name="T4", total_memory=16e9, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with pytest.raises(UserError, match="T4 has 16 GB of memory, and the 7B needs 20"):
        check_gpu("cuda", "full")
    properties.total_memory = 24e9
    check_gpu("cuda", "full")
    for convert in (Bench("cuda", "full", tmp_path).peer, Bench("cuda", "full", tmp_path).llava):
        with pytest.raises(UserError, match="T4 has 24 GB of memory, and the 7B needs 55 for the model of transformers"):
            convert(None)
    check_gpu("cuda", "small")
    assert "T4 has compute capability 7.5, and bfloat16 and flash attention need 8.0" in capsys.readouterr().out


def test_step_monitor_shows_growing_memory_and_time():
    monitor = StepMonitor()
    monitor.times, monitor.megabytes = [0.0, 1.0, 2.0, 4.0, 6.0], [500.0, 507.0, 514.0, 521.0, 528.0]
    assert monitor.megabytes_per_step == pytest.approx(7)
    assert monitor.slowdown == 2
    monitor.times = [0.0, 1.0, 2.0, 4.0, 7.0]
    assert monitor.slowdown_of_last(4) == 3


def test_rows_replace_those_of_the_same_part(tmp_path):
    def value(part: str, number: float) -> Value:
        return Value("no GPU", part, "x", number, "s")

    write([value("memory", 1.0), value("resume", 2.0)], tmp_path / "gpu.csv")
    path = write([value("resume", 3.0)], tmp_path / "gpu.csv")
    with path.open() as file:
        assert [(line["part"], line["value"]) for line in csv.DictReader(file)] == [("memory", "1"), ("resume", "3")]
    assert path == tmp_path / "gpu_values.csv"


def test_output_is_checked_before_the_first_part(tmp_path):
    prepare(tmp_path / "new" / "gpu.csv")
    write([Value("no GPU", "memory", "x", 1.0, "s")], tmp_path / "new" / "gpu.csv")
    prepare(tmp_path / "new" / "gpu.csv")
    (tmp_path / "new" / "gpu_kernels.csv").write_text("gpu,name\n")
    with pytest.raises(UserError, match=r"gpu_kernels\.csv: its columns are not gpu,group,name"):
        prepare(tmp_path / "new" / "gpu.csv")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="its folder cannot be made"):
        prepare(tmp_path / "file" / "gpu.csv")


@pytest.mark.parametrize("name", ["ours_none", "transformers"])
def test_model_that_does_not_fit_is_built_once(name):
    """A smaller micro-batch makes no room for it."""
    builds = []

    def build(settings):
        builds.append(settings)
        raise torch.OutOfMemoryError

    bench = SimpleNamespace(scale={"batch": 4, "micro": 4}, settings=lambda *words: words, model=build, peer=build)
    with pytest.raises(torch.OutOfMemoryError):
        gpu_train.train(bench, "mix", name)
    assert len(builds) == 1


def test_profile_of_a_step_stands_beside_the_prediction():
    """The profiler sees a product forward and two backward; the prediction has one kernel with FLOPs and two without."""
    profiler, weight = StepProfiler("cpu", accumulate=1), torch.ones(4, 4, requires_grad=True)
    for number in range(WARM_UP + 2):
        profiler.on_train_batch_start(None, None, None, number)
        (torch.ones(4, 4, requires_grad=True) @ weight).relu().sum().backward()
        profiler.on_train_batch_end(None, None, None, None, number)
    measured = profiler.kernels()
    assert {name: count for name, count, _ in measured}["aten::mm"] == 3
    recording = Counter({Kernel("mm", "a.py:1", 400, 10, 1): 1, Kernel("relu", "a.py:2", 0, 20, 1): 2})
    rows = kernel_rows("no GPU", measured, recording, Accelerator("A", flops=100, bandwidth=10, launch=0.0))
    totals = {row.name: row for row in rows if row.group == "total"}
    assert [(row.launches_predicted, row.ms_predicted) for row in totals.values()] == [(3, 8000), (1, 4000), (2, 4000)]
    assert totals["matrix"].launches_measured == 3
    assert totals["all kernels"].launches_measured == totals["matrix"].launches_measured + totals["other"].launches_measured
    assert totals["all kernels"].ms_measured == pytest.approx(sum(ms for _, _, ms in measured))
    slowest = [row.ms_measured for row in rows if row.group == "most time, measured"]
    assert slowest == sorted(slowest, reverse=True)
    assert [row.name for row in rows if row.ms_measured is None] == ["mm, a.py:1", "relu, a.py:2"]


def test_profile_ends_with_a_step_that_fails():
    profiler = StepProfiler("cpu", accumulate=1)
    profiler.on_exception(None, None, RuntimeError())  # before the profile has started
    profiler.on_train_batch_start(None, None, None, WARM_UP)
    assert torch.autograd._profiler_enabled()
    profiler.on_exception(None, None, RuntimeError())
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize(
    ("name", "is_matrix"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", True),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", True),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", True),
        ("triton_red_fused_add_flash_rmsnorm_0", False),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", False),
    ],
)
def test_kernels_with_flops_are_known_by_name(name, is_matrix):
    rows = kernel_rows("H100", [(name, 2, 3.0)], Counter(), Accelerator("A", flops=1, bandwidth=1, launch=0))
    assert next(row for row in rows if row.name == ("matrix" if is_matrix else "other")).ms_measured == 3.0


@pytest.mark.slow
def test_our_generator_and_transformers_give_equal_answers_in_float32(tmp_path, monkeypatch):
    (tmp_path / "shards" / "mix").mkdir(parents=True)  # answers need no training data
    bench = Bench("cpu", "small", tmp_path)
    values = {value.name: value.value for value in compare_generation(bench)}
    assert values["equal"] == 1
    monkeypatch.setattr(gpu_generate, "generate_one", lambda *arguments: "w1 w2")
    with pytest.raises(AssertionError, match="only 0 of 6 answers are equal"):
        compare_generation(bench)


def test_log_of_a_training_in_progress_is_read_up_to_its_last_complete_line(tmp_path):
    run = RunFolder(tmp_path)
    assert (run.steps, run.checkpoint) == ([], 0)
    run.log.write_text("step,seconds,val\n1,2.5,\n2,3.5,1.25\n3,4.")
    (tmp_path / "checkpoints").mkdir()
    for name in ("step=2.ckpt", "step=10.ckpt", "step=20.ckpt.part", "best.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    assert run.rows == [(1, 2.5, False), (2, 3.5, True)]
    assert run.checkpoint == 10


def test_seconds_of_a_checkpoint_are_those_that_the_next_step_takes_longer():
    """Steps of 1 s, the first of 9 s; validations of 3 s at steps 3 and 6, checkpoints of 5 s."""
    ends, validates = [9, 10, 14, 20, 21, 25, 31], [False, False, True, False, False, True, False]
    assert split_seconds(list(zip(range(1, 8), ends, validates, strict=True))) == (1, 5)


@pytest.mark.parametrize(
    ("exit_code", "deadline", "message"),
    [(1, math.inf, "ended: last line"), (None, 0, "would take longer than minutes= allows: last line")],
)
def test_training_is_waited_for_until_it_ends_or_the_budget_is_spent(tmp_path, monkeypatch, capsys, exit_code, deadline, message):
    def start(command, stdout, **options):
        stdout.write("first line\nlast line\n")
        return SimpleNamespace(poll=lambda: exit_code)

    monkeypatch.setattr(gpu_resume.subprocess, "Popen", start)
    monkeypatch.setattr(gpu_resume.time, "sleep", lambda seconds: pytest.fail("waits"))
    training = Training([], tmp_path / "log", deadline)
    with pytest.raises(UserError, match=message) as error:
        training.until(lambda: False)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == "first line\nlast line\n\n"


def test_training_of_a_killed_benchmark_ends_by_itself(tmp_path):
    (tmp_path / "shards" / "mix").mkdir(parents=True)
    settings = to_typed(TrainConfig, compose("train", training_words(Bench("cpu", "small", tmp_path))))
    (timer,) = (callback for callback in build_trainer(settings, callbacks=[]).callbacks if isinstance(callback, Timer))
    assert timer.time_remaining() == 300


@pytest.mark.slow
def test_gpu_benchmark_runs_at_small_size(tmp_path, monkeypatch):
    """One variant fits only with half of the samples. Rows of other parts stay in the file."""
    train_unpacked, words = gpu_train.VARIANTS["ours_unpacked"]

    def train_or_run_out_of_memory(bench, settings, micro):
        if micro > 1:
            raise torch.OutOfMemoryError
        return train_unpacked(bench, settings, micro)

    monkeypatch.setitem(gpu_train.VARIANTS, "ours_unpacked", (train_or_run_out_of_memory, words))
    names = [field.name for field in fields(Row)]
    (tmp_path / "gpu.csv").write_text(f"{','.join(names)}\n{','.join(['no GPU', 'even'] + ['1'] * (len(names) - 2))}\n")
    parts = "mix_ours_none,mix_ours_unpacked,mix_transformers,mix_transformers_checkpointing,kernels,memory"
    gpu.main(["device=cpu", "size=small", "minutes=1000", f"parts={parts}", f"out={tmp_path}/gpu.csv"])
    with (tmp_path / "gpu.csv").open() as file:
        stored, *rows = csv.DictReader(file)
    assert stored["lengths"] == "even"
    assert [row["variant"] for row in rows] == ["ours_none", "transformers", "transformers_checkpointing", "ours_unpacked"]
    assert [row["micro_batch"] for row in rows] == ["2", "2", "2", "1"]
    assert all(float(row["tokens_per_second"]) > float(row["samples_per_second"]) > 0 for row in rows)
    assert all(float(row["mfu"]) > 0 and float(row["wall_s"]) > 0 for row in rows)
    assert [bool(row["data_wait"]) for row in rows] == [True, False, False, True]
    assert all(float(row["slowdown"]) > 0 and row["host_mb_per_step"] for row in rows)
    with (tmp_path / "gpu_kernels.csv").open() as file:
        total, matrix, *_ = csv.DictReader(file)
    assert int(total["launches_predicted"]) > int(matrix["launches_predicted"]) > 0
    assert float(total["ms_measured"]) > float(matrix["ms_measured"]) > 0
    with (tmp_path / "gpu_values.csv").open() as file:
        values = {line["name"]: float(line["value"]) for line in csv.DictReader(file)}
    assert values["geometries"] > 1
    assert values["slowdown"] > 0
