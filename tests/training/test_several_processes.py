"""Two real processes against one: the same losses, exact resume, sharding, faults. several_ranks.py is what they
run."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from harmonic_gpt.data.sampler import training_sampler
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import distributed, loop

ROOT = Path(__file__).parents[2]
RANKS = str(Path(__file__).with_name("several_ranks.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
PATIENCE = 300  # seconds that a launch may take on a busy machine; each is to take some twenty


def torchrun(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *arguments]
    return subprocess.run(
        command, env=ENVIRONMENT | environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )


def ranks(check: str, folder: Path, **environment: str) -> list[dict]:
    """What each of two ranks saw in a check of several_ranks.py."""
    done = torchrun(RANKS, check, str(folder), **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{check}-{rank}.json").read_text()) for rank in range(2)]


def column(run_dir, name):
    return [row[name] for row in read_metrics(run_dir) if name in row]


def weights(run_dir):
    return load_file(run_dir / "latest" / "model.safetensors")


def assert_close_losses(a: Path, b: Path, rel: float):
    """Losses, gradient norms and validation losses of the steps that `a` made."""
    for name in ("loss", "grad_norm", "val_loss", "center_norm_mean"):
        seen, expected = column(a, name), column(b, name)
        assert seen == pytest.approx(expected[-len(seen) :], rel=rel), name


def assert_close_runs(a: Path, b: Path):
    assert_close_losses(a, b, rel=1e-5)
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-4)


def assert_equal_runs(whole: Path, parts: Path, steps: int):
    """Bit for bit: the last `steps` losses, and all weights."""
    assert column(parts, "loss")[-steps:] == column(whole, "loss")[-steps:]
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=0)


@pytest.fixture
def settings(run_config, tmp_path):
    """A function that writes NAME.yaml for the ranks, of a run in the folder NAME, and returns its config."""

    def write(name: str, **overrides):
        # 7 blocks do not divide by 2, nor by micro-batches of 3
        config = run_config(run_dir=tmp_path / name, train__micro_batch_size=3, eval__tokens=7 * 32, **overrides)
        (tmp_path / f"{name}.yaml").write_text(config.to_yaml())
        return config

    return write


def begun_as(run: Path, at: Path) -> None:
    """In `at`, what was there of `run` after its third step."""
    shutil.copytree(run / "step-000003", at / "step-000003")


@pytest.mark.slow
def test_two_processes_train_as_one_does(settings, tmp_path, token_folder):
    one = settings("one")
    assert loop.train(one) == 0
    settings("two")
    settings("dropout", model__dropout=0.1)
    settings("dropout-parts", model__dropout=0.1)
    begun_as(tmp_path / "one", tmp_path / "grown")
    settings("grown")
    settings("stopped", checkpoint__every=100)
    settings("stopped-evaluating", checkpoint__every=100)
    settings("nan", train__max_skipped_steps=0)
    settings("nan-skipped", train__max_skipped_steps=1)
    settings("disagree")
    seen = ranks("plain", tmp_path)

    assert_close_runs(tmp_path / "two", tmp_path / "one")
    assert json.loads((tmp_path / "two/latest/state.json").read_text())["world_size"] == 2
    assert_equal_runs(tmp_path / "dropout", tmp_path / "dropout-parts", steps=3)
    assert column(tmp_path / "dropout", "loss") != pytest.approx(column(tmp_path / "two", "loss"), rel=1e-3)

    # 1 -> 2: the tokens of steps 4 to 6 are those that one process would have read
    assert_close_runs(tmp_path / "grown", tmp_path / "one")
    sampler = training_sampler(open_token_folder(token_folder), None, 32, 8, one.seed)
    for step, (first, second) in enumerate(zip(seen[0]["read"], seen[1]["read"], strict=True), start=3):
        assert np.array_equal(sorted(first + second), sorted(sampler.batch(step).tolist()))
    assert len(seen[0]["read"]) == 3

    # 2 -> 1
    begun_as(tmp_path / "two", tmp_path / "shrunk")
    assert loop.train(settings("shrunk"), resume=True) == 0
    assert_close_runs(tmp_path / "shrunk", tmp_path / "one")

    assert [s["stopped_at"] for s in seen] == [4, 4]
    assert [p.name for p in ckpt.checkpoints(tmp_path / "stopped")] == ["step-000004"]
    assert ckpt.find_corruption(tmp_path / "stopped/step-000004") is None
    assert [p.name for p in ckpt.checkpoints(tmp_path / "stopped-evaluating")] == ["step-000003", "step-000006"]
    assert column(tmp_path / "stopped-evaluating", "val_loss") == column(tmp_path / "two", "val_loss")
    assert [s["skipped_steps"] for s in seen] == [1, 1]
    assert not (tmp_path / "disagree").exists()


@pytest.mark.slow
def test_one_rank_fits_the_head_for_all(settings, tmp_path):
    torch.manual_seed(0)
    fields = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48}
    GPT2LMHeadModel(GPT2Config(**fields)).save_pretrained(tmp_path / "gpt2")
    for name in ("fitted", "differing"):
        settings(name, model__init_from=tmp_path / "gpt2", model__exponent="fit")
    seen = ranks("fitted", tmp_path)
    assert [rank["fits"] for rank in seen] == [1, 0]
    assert seen[0]["facts"] == seen[1]["facts"]
    assert not (tmp_path / "differing").exists()


def launcher_environment(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file configs/accelerate/NAME.yaml` sets for the processes it starts."""
    from accelerate.commands.launch import _validate_launch_command

    path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "--gpu_ids", "all", "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    before = dict(os.environ)
    environment = prepare_multi_gpu_env(arguments)
    return {
        key: value
        for key, value in environment.items()
        if before.get(key) != value and key.startswith(("FSDP_", "ACCELERATE_"))
    }


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones_do(settings, tmp_path):
    assert loop.train(settings("one")) == 0
    assert loop.train(settings("one-untied", model__tie_word_embeddings=False)) == 0
    settings("fsdp")
    settings("fsdp-dropout", model__dropout=0.1)
    settings("fsdp-parts", model__dropout=0.1)
    settings("fsdp-untied", model__tie_word_embeddings=False)
    settings("fsdp-recomputing", train__gradient_checkpointing=True)
    settings("fsdp-muon", optim__optimizer="muon")
    settings("fsdp-nan", train__max_skipped_steps=1)
    settings("fsdp-compiled", train__compile=True)
    settings("fsdp-bf16", train__precision="bf16")
    settings("ddp-bf16", train__precision="bf16")
    begun_as(tmp_path / "one", tmp_path / "fsdp-grown")
    settings("fsdp-grown")
    ranks("sharded", tmp_path, **launcher_environment("fsdp2"))

    for name in ("fsdp", "fsdp-grown", "fsdp-recomputing", "fsdp-compiled"):
        assert_close_runs(tmp_path / name, tmp_path / "one")
    assert_close_runs(tmp_path / "fsdp-untied", tmp_path / "one-untied")
    assert not (tmp_path / "fsdp-muon").exists()
    assert_equal_runs(tmp_path / "fsdp-dropout", tmp_path / "fsdp-parts", steps=3)
    # Not the weights: the true gradient of the keys' bias is zero, and AdamW makes steps out of its rounding
    assert_close_losses(tmp_path / "fsdp-bf16", tmp_path / "ddp-bf16", rel=1e-4)
    # A checkpoint of shards is like any other: the same files, loads and goes on in one process
    latest = tmp_path / "fsdp/latest"
    assert sorted(p.name for p in latest.iterdir()) == sorted(
        [*(p.name for p in (tmp_path / "one/latest").iterdir()), "rng-1.pt"]
    )
    assert (latest / "config.json").read_text() == (tmp_path / "one/latest/config.json").read_text()
    loaded = load_model(str(tmp_path / "fsdp")).model
    torch.testing.assert_close(
        loaded.lm_head.weight.detach(), weights(tmp_path / "fsdp")["transformer.wte.weight"], rtol=0, atol=0
    )
    begun_as(tmp_path / "fsdp", tmp_path / "shrunk")
    assert loop.train(settings("shrunk"), resume=True) == 0
    assert_close_runs(tmp_path / "shrunk", tmp_path / "one")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_and_a_restart_goes_on_exactly(settings, tmp_path):
    """The launcher's own end is what is waited for: a rank that hangs fails this test after PATIENCE."""
    settings("dying", model__dropout=0.1, checkpoint__background=False)
    settings("whole", model__dropout=0.1)
    done = torchrun(RANKS, "dying", str(tmp_path))
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert [p.name for p in ckpt.checkpoints(tmp_path / "dying")] == ["step-000003"]
    # Without the variable, processes may find the addresses of those before them: pytorch issue 135712
    done = torchrun("--max_restarts", "1", RANKS, "restarted", str(tmp_path), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(tmp_path / "whole", tmp_path / "dying", steps=3)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others(settings, tmp_path):
    """After the collectives' timeout, here 5 s."""
    settings("hanging")
    done = torchrun(RANKS, "hanging", str(tmp_path))
    assert done.returncode != 0
    assert "Timed out waiting 5000ms" in done.stderr
    assert [p.name for p in ckpt.checkpoints(tmp_path / "hanging")] == ["step-000003"]


@pytest.mark.slow
def test_a_signal_to_the_launcher_leaves_one_checkpoint(settings, tmp_path):
    settings("stopped", train__steps=10**6, eval__every=10**6, checkpoint__every=10**6)
    command = [
        *TORCHRUN,
        "--standalone",
        "--nproc_per_node",
        "2",
        "train.py",
        "--config",
        str(tmp_path / "stopped.yaml"),
    ]
    launcher = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    output = iter(launcher.stderr)
    next(line for line in output if line.startswith("step 5/"))
    launcher.terminate()
    rest = "".join(output)
    assert launcher.wait(PATIENCE) != 0
    (path,) = ckpt.checkpoints(tmp_path / "stopped")
    assert ckpt.find_corruption(path) is None
    assert f"stopped by SIGTERM after step {ckpt.step_of(path)}; continue with --resume" in rest
    assert "[rank" not in rest  # as torch marks the traceback of a rank; the launcher shows its own


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines(settings, tmp_path, launcher):
    """Two launchers on this machine that meet over loopback, one rank each, by the commands of
    docs/how-to/several_processes.md."""
    assert loop.train(settings("one")) == 0
    settings("nodes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for node in range(2):
        if launcher == "torchrun":
            command = [
                *TORCHRUN,
                "--nnodes",
                "2",
                "--nproc_per_node",
                "1",
                "--rdzv_id",
                "a-run",
                "--rdzv_backend",
                "c10d",
            ]
            command += ["--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1"]
        else:
            command = [
                sys.executable,
                "-m",
                "accelerate.commands.launch",
                "--config_file",
                "configs/accelerate/ddp.yaml",
            ]
            command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(node)]
            command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        command += ["train.py", "--config", str(tmp_path / "nodes.yaml")]
        nodes.append(subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    errors = [node.communicate(timeout=PATIENCE)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert sum("= 2 ranks x" in error for error in errors) == 1
    assert_close_runs(tmp_path / "nodes", tmp_path / "one")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launcher_configs_are_accelerates(name, monkeypatch):
    environment = launcher_environment(name)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # train.precision decides
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == (name == "fsdp2")
    if name == "fsdp2":
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.transformer_cls_names_to_wrap == ["GPT2Block"]
        assert plugin.reshard_after_forward is True
        assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_what_would_train_wrongly_is_refused(run_config, tmp_path, monkeypatch, kind):
    """DeepSpeed's backward moves the weights; FSDP 1 flattens them."""

    class Other:
        num_processes, distributed_type, is_fsdp2 = 1, kind, False

        def __init__(self, **_):
            pass

    monkeypatch.setattr(distributed, "Accelerator", Other)
    with pytest.raises(InputError, match="expected plain data parallelism, or FSDP with fsdp_version 2"):
        loop.train(run_config())
    assert not (tmp_path / "run").exists()
