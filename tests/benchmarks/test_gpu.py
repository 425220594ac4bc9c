"""`python -m benchmarks.gpu.run` without a GPU: every stage at toy size, so that a GPU is not needed to find a typo."""

import os
import select
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from benchmarks.gpu import device, head, pair, products, run, step, tests
from benchmarks.gpu.goals import goals
from benchmarks.gpu.plain_gpt import PlainGPT, Shape
from benchmarks.gpu.settings import CONFIGS, Settings
from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.data import sources
from harmonic_gpt.files import read_jsonl
from harmonic_gpt.model import harmonic_loss_cuda
from harmonic_gpt.run_config import load_run_config
from tests.model.loss_cases import inputs, through_auto


@pytest.fixture
def settings(tmp_path, token_folder) -> Settings:
    return Settings(work=tmp_path / "work", toy=True, data=token_folder)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results" / "gpu.jsonl"


@pytest.fixture
def in_this_process(monkeypatch):
    """Stages run by their command line, but without a process of their own. Returns the commands."""
    commands = []

    def run_process(command, _limit):
        commands.append(command)
        assert command[:3] == [sys.executable, "-m", "benchmarks.gpu.run"]
        assert run.main(command[3:]) in (0, 1)

    monkeypatch.setattr(run, "run_process", run_process)
    return commands


def test_every_stage(out, tmp_path, monkeypatch, in_this_process, capsys):
    """Twice: the second time nothing is left to do. A file without torch stands for tests/gpu, which takes longer."""
    suite = tmp_path / "test_some.py"
    suite.write_text("import pytest\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): pytest.skip('no reason')\n")
    monkeypatch.setattr(tests, "SUITE", str(suite))
    monkeypatch.setattr(
        sources, "pydocs", lambda: tuple(f"{i}: " + "some words of a document. " * 80 for i in range(60))
    )
    arguments = ["--toy", "--out", str(out), "--work", str(tmp_path / "work")]
    assert run.main(arguments) == 0
    rows = read_jsonl(out)
    assert [row for row in rows if "error" in row] == []
    assert list(dict.fromkeys(row["stage"] for row in rows)) == list(run.STAGES)
    for row in rows:
        assert row["device"] == "cpu"
        assert row["torch"] == version("torch")  # builds for CUDA call themselves 2.9.0+cu128
        assert row["toy"]
        assert {"triton", "cuda", "driver", "commit", "code", "date", "seconds"} <= row.keys()
    (suite,) = (row for row in rows if row["measurement"] == "pytest tests/gpu")
    assert (suite["passed"], suite["n_failed"]) == (2, 0)
    assert list(suite["skipped_tests"].values()) == ["no reason"]
    ours = {row["contender"]: row for row in rows if row["measurement"] == "head, fp32"}
    torchs_best = ["F.linear_cross_entropy"] if hasattr(torch.nn, "LinearCrossEntropyOptions") else []  # not in 2.9
    for name in (head.HARMONIC, head.STANDARD, *torchs_best):
        assert max(ours[name]["grad_x_error"], ours[name]["grad_w_error"]) < 1e-5
    assert all(row["flash"] for row in rows if "flash" in row)
    assert all(row["tokens_per_second"] > 0 for row in rows if row["measurement"] == "throughput")
    curves = [row for row in rows if row["stage"].startswith("pair")]
    assert [(row["head"], row["steps"], len(row["curve"])) for row in curves] == [
        ("harmonic", 4, 4),
        ("standard", 4, 4),
    ]

    assert len(in_this_process) == len(run.STAGES)
    assert run.main(arguments) == 0
    assert read_jsonl(out) == rows
    assert len(in_this_process) == len(run.STAGES)
    assert "start to first step, warm cache: " in capsys.readouterr().out


def test_a_failure_is_a_row_and_the_next_measurement_runs(settings, out, monkeypatch, capsys):
    heads = head.heads
    with monkeypatch.context() as patch:
        patch.setattr(
            head, "heads", lambda settings, dtype: 1 / 0 if dtype == torch.bfloat16 else heads(settings, dtype)
        )
        assert run.measure(["head"], settings, out, isolate=False) == 1
    rows = read_jsonl(out)
    assert [(row["measurement"], row["error"]) for row in rows if "error" in row] == [
        ("head, bf16", "ZeroDivisionError: division by zero")
    ]
    assert {row["measurement"] for row in rows if "ms" in row} == {"head, fp32"}
    assert "head: head, bf16: ZeroDivisionError" in capsys.readouterr().out

    assert run.measure(["head"], settings, out, isolate=False) == 0
    assert {row["measurement"] for row in read_jsonl(out)[len(rows) :]} == {"head, bf16"}
    assert "ZeroDivisionError" not in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"device": "another"}, {"code": "another"}, {"toy": False}])
def test_rows_of_another_device_or_code_do_not_count(settings, out, other):
    results = run.Results(out, settings)
    names = list(results.measurements("products"))
    results.append([{"ms": 1.0}], stage="products", measurement=names[0])
    assert results.pending("products") == names[1:]
    results.identity |= other
    assert results.pending("products") == names


def test_what_failed_last_time_comes_last(settings, out):
    results = run.Results(out, settings)
    first, *others = results.measurements("head")
    results.append([{"ms": 1.0}, {"error": "why"}], stage="head", measurement=first)
    assert results.pending("head") == [*others, first]
    assert results.rows() == []


def test_a_stage_that_crashes_is_a_row_and_the_next_one_runs(settings, out, monkeypatch):
    def run_process(command, _limit):
        return "its process ended with exit code -11" if "products" in command else None

    monkeypatch.setattr(run, "run_process", run_process)
    assert run.measure(["products", "head"], settings, out) == 1
    assert [(row["stage"], row["error"]) for row in read_jsonl(out)] == [
        ("products", "its process ended with exit code -11")
    ]


def test_a_process_that_does_not_stop_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    """Each holds the pipe's other end: it is closed when none is left."""
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    error = run.run_process(["sh", "-c", f"trap '' TERM; exec 3>{pipe}; sleep 1000 & wait; sleep 1000"], 0.3)
    assert error == "stopped after 0.3 s; the same command goes on with what is missing"
    readable, _, _ = select.select([end], [], [], 10)
    assert readable
    assert os.read(end, 1) == b""
    os.close(end)
    assert run.run_process(["sh", "-c", "exit 7"], 10) == "its process ended with exit code 7"
    assert run.run_process(["sh", "-c", "exit 1"], 10) is None


def warning_of_a_broken_kernel(monkeypatch) -> str:
    """What the loss says when its kernel does not compile."""

    def element_pass(*_):
        raise RuntimeError("at 3:1")

    monkeypatch.setattr(harmonic_loss_cuda, "_triton_element_pass", element_pass)
    monkeypatch.setattr(harmonic_loss_cuda, "_triton_failed", False)
    with pytest.warns(RuntimeWarning, match="at 3:1") as seen:
        through_auto(*inputs(torch.float32))
    return str(seen[0].message)


def test_the_slower_way_without_the_kernel_is_never_measured(settings, out, monkeypatch, capsys):
    """Its warning is an error in what a stage starts, and nothing more is measured in that process."""
    with monkeypatch.context() as patch:
        text = warning_of_a_broken_kernel(patch)
    program = (
        "import sys, warnings\ntry: warnings.warn(sys.argv[1], RuntimeWarning)\nexcept RuntimeWarning: sys.exit(7)"
    )
    assert run.run_process([sys.executable, "-c", program, text], 60) == "its process ended with exit code 7"

    loss, calls = head.harmonic_cross_entropy, []

    def failing_once(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeWarning(text)
        return loss(*args, **kwargs)

    monkeypatch.setattr(head, "harmonic_cross_entropy", failing_once)
    assert run.measure(["head"], settings, out, isolate=False) == 1
    rows = read_jsonl(out)
    assert {row["measurement"] for row in rows} == {"head, bf16"}
    assert sum("error" in row for row in rows) == 1
    assert run.Results(out, settings).rows() == []
    printed = capsys.readouterr().out
    assert "unfinished" in printed
    assert "not measured harmonic head / three bare products" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(capsys):
    assert run.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_only_the_tests_of_the_gpu_see_one():
    assert (os.environ.get("CUDA_VISIBLE_DEVICES") == "") == (os.environ.get("HARMONIC_GPT_GPU_TESTS") != "cuda")


def test_toy_size_is_for_the_cpu_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(run, "measure", lambda *_: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) or 0)
    assert run.main(["--toy", "--out", str(tmp_path / "gpu.jsonl")]) == 0
    assert seen == [""]


def ended_well(command, **_):
    Path(command[-2].removeprefix("--junitxml=")).touch()
    return SimpleNamespace(stdout="", returncode=0)


def test_a_failing_test_of_the_gpu_is_an_error(settings, tmp_path, monkeypatch):
    file = tmp_path / "test_some.py"
    file.write_text("import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\ndef test_c(fixture): pass\n")
    monkeypatch.setattr(tests, "SUITE", str(file))
    (row,) = tests.suite(settings)
    assert (row["passed"], row["n_failed"]) == (1, 2)
    assert "assert 1 == 2" in row["failed"].values()
    assert "2 failed, 1 passed" in row["error"]
    monkeypatch.setattr(tests, "outcomes", lambda _: {"passed": 0, "failed": {}, "skipped_tests": {"a": "why"}})
    monkeypatch.setattr(tests.subprocess, "run", ended_well)
    assert "0 failed, 0 passed" in tests.suite(settings)[0]["error"]  # all skipped: nothing was tested


def test_without_pytest_the_error_says_what_is_missing(settings, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # no site-packages
    python.chmod(0o755)
    monkeypatch.setattr(tests, "sys", SimpleNamespace(executable=str(python)))
    with pytest.raises(RuntimeError, match=r"pytest ended with exit code 1: .*No module named pytest"):
        tests.suite(settings)


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing
        self.time = None

    def record(self):
        self.time = FakeEvent.now

    def synchronize(self):
        assert self.time is not None

    def elapsed_time(self, end):
        return end.time - self.time  # milliseconds


@pytest.fixture
def fake_h100(monkeypatch):
    """What the measurements ask of torch.cuda, and nothing that computes."""
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=79 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1700)
    monkeypatch.setattr(FakeEvent, "now", 3.0, raising=False)


@pytest.mark.usefixtures("fake_h100")
def test_time_and_memory_on_a_gpu():
    assert device.seconds(lambda: setattr(FakeEvent, "now", FakeEvent.now + 250.0), "cuda") == pytest.approx(0.25)
    assert device.peak_bytes(lambda: None, "cuda") == 700
    facts = device.facts("cuda")
    assert (facts["device"], facts["capability"], facts["memory_gib"]) == ("NVIDIA H100 80GB HBM3", "9.0", 79.0)
    assert device.micro_batch_size() == 32


@pytest.mark.usefixtures("fake_h100")
def test_runs_of_full_size(tmp_path, monkeypatch):
    """Their settings alone: GPT-2 small of configs/, and what is changed."""
    settings, configs = Settings(work=tmp_path), []

    def noted(config, *_):
        configs.append(config)
        raise KeyboardInterrupt

    for module in (step, products):
        monkeypatch.setattr(module, "random_tokens", lambda _: tmp_path / "tokens")
        monkeypatch.setattr(module, "running", noted)
    monkeypatch.setattr(step, "_first_step_of_a_process", noted)
    calls = products.measurements(settings) | step.measurements(settings)
    for call in (call for name, call in calls.items() if not name.startswith("mm")):
        with pytest.raises(KeyboardInterrupt):
            call()
    configs += [pair.pair_config(settings, name, []) for name in ("harmonic", "standard")]
    eager, compiled, throughput, start, harmonic, standard = configs
    assert all((c.model.n_embd, c.train.precision) == (768, "bf16") for c in configs)
    assert (eager.train.compile, compiled.train.compile) == (False, True)
    assert (throughput.model.tie_word_embeddings, throughput.optim.optimizer) == (True, "adamw")
    assert (throughput.train.micro_batch_size, throughput.train.batch_tokens) == (32, 491520)
    assert throughput.data.vocab_size == start.data.vocab_size == 50257
    assert start.train == load_run_config(CONFIGS / "gpt2_small_harmonic.yaml").train
    assert harmonic.train == standard.train
    assert (harmonic.model.head, standard.model.head) == ("harmonic", "standard")


def test_goals():
    common = {"stage": "head", "dtype": "bfloat16"}
    rows = [
        {"stage": "tests", "n_failed": 0},
        {"stage": "products", "compiled": False, "flash": True},
        {"stage": "products", "compiled": True, "flash": False},
        *(common | {"contender": name, "ms": ms} for name, ms in ((head.FLOOR, 25.0), (head.HARMONIC, 29.0))),
        *(common | {"contender": name, "ms": ms} for name, ms in (("Liger", 40.0), ("QuACK", 28.0))),
        common | {"contender": "Liger", "dtype": "float32", "ms": 1.0},
        {"stage": "step", "contender": step.HARMONIC, "tokens_per_second": 388_000},
        {"stage": "step", "contender": step.STANDARD, "tokens_per_second": 400_000},
        {"stage": "step", "contender": step.NANOGPT_LIKE, "tokens_per_second": 380_000},
    ]
    judged = {goal.name: goal for goal in goals(rows)}
    assert [goal.met for goal in judged.values()] == [True, True, False, True, False, False, True, True, None]
    assert judged["harmonic head / three bare products"].value == pytest.approx(1.16)
    assert judged["harmonic head / fastest head of others"].value == pytest.approx(29 / 28)
    texts = [str(goal) for goal in judged.values()]
    assert "met          harmonic head / three bare products: 1.16, goal <= 1.2" in texts
    assert "MISSED       step, harmonic, tokens per second: 388,000, goal >= 390,000" in texts
    assert "not measured start to first step, warm cache: goal <= 60 s" in texts


def test_both_heads_of_the_pair_train_the_same_number_of_steps():
    speeds = [{"stage": "step", "contender": step.HARMONIC, "tokens_per_second": 200_000.0}]
    speeds += [{"stage": "step", "contender": step.STANDARD, "tokens_per_second": 250_000.0}]
    steps = int(pair.TRAINING_SECONDS * 200_000) // pair.BATCH_TOKENS
    assert pair.steps_for(speeds) == steps
    assert pair.steps_for([*speeds, {"stage": "pair-harmonic", "steps": 17}]) == 17
    assert 0 < pair.steps_for([]) < steps


def test_a_contender_that_fails_leaves_the_others_alone():
    times, errors = device.interleaved({"good": lambda: None, "bad": lambda: [][1]}, 3, "cpu")
    assert len(times["good"]) == 3
    assert list(times) == ["good"]
    assert errors == {"bad": "IndexError: list index out of range"}


def test_libraries_of_others_are_called_as_they_want(settings, monkeypatch):
    """Stand-ins with their signatures: Liger takes the weights first, the others the hidden states."""

    class LigerFusedLinearCrossEntropyLoss:
        def __call__(self, lin_weight, _input, target, bias=None):
            return F.cross_entropy(F.linear(_input, lin_weight, bias), target)

    def loss(e, c, targets):
        return F.cross_entropy(e @ c.T, targets)

    for path, name, value in (
        ("liger_kernel.transformers", "LigerFusedLinearCrossEntropyLoss", LigerFusedLinearCrossEntropyLoss),
        ("cut_cross_entropy", "linear_cross_entropy", loss),
        ("quack.linear_cross_entropy", "chunked_linear_cross_entropy", loss),
    ):
        module = ModuleType(path)
        setattr(module, name, value)
        monkeypatch.setitem(sys.modules, path, module)
        monkeypatch.setitem(sys.modules, path.partition(".")[0], module)
    rows = {row["contender"]: row for row in head.heads(settings, torch.bfloat16)}
    for name, classes in (("Liger", 65), ("cut-cross-entropy", 65), ("QuACK", 72)):
        assert rows[name]["classes"] == classes
        assert rows[name]["grad_x_error"] < 0.01
        assert rows[name]["grad_w_error"] < 0.01


def test_the_plain_model_is_gpt2():
    shape = Shape(vocab_size=50257, n_positions=1024, n_layer=12, n_head=12, n_embd=768)
    with torch.device("meta"):
        plain, ours = PlainGPT(shape), HarmonicGPT2ForCausalLM(HarmonicGPT2Config(**shape._asdict()))
    count = sum(p.numel() for p in plain.parameters())
    assert count == sum(p.numel() for p in ours.parameters()) == 124_439_808
    small = PlainGPT(Shape(101, 24, 2, 2, 32))
    ids, targets = torch.randint(101, (2, 24)), torch.full((2, 24), -100)
    targets[:, 10] = 7
    loss = small(ids, targets)
    assert loss.item() == pytest.approx(torch.tensor(101.0).log().item(), abs=0.2)
    ids[:, 11:] = 0  # what comes later does not matter
    assert small(ids, targets).item() == pytest.approx(loss.item(), rel=1e-6)
    ids[:, 5] += 1
    assert small(ids % 101, targets).item() != pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.slow
def test_every_stage_in_its_own_process(settings, out):
    assert run.measure(list(run.STAGES), settings, out) == 0
    (suite,) = (row for row in read_jsonl(out) if row["measurement"] == "pytest tests/gpu")
    assert suite["passed"] > 20


@pytest.mark.slow
def test_the_first_step_of_a_process(settings, tmp_path):
    settings.work.mkdir()
    config = step._tied(settings, "harmonic", tmp_path)
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    done = step._first_step_of_a_process(config, tmp_path)
    assert done["seconds_to_first_step"] > done["seconds_of_imports"] + done["seconds_of_setup"] > 0
