"""The runner: a queue's runs are the product's own, are found again by their keys, and outlive interruptions."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import queue_file
import report
import run_queue
import trials
import yaml

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import read_jsonl
from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training import loop

ROOT = Path(__file__).parents[2]
QUEUES = sorted((ROOT / "experiments").glob("*.yaml"))
RESULTS = ROOT / "docs/results/recipe.jsonl"


def test_a_queue_expands_in_order_and_names_equal_runs_once(queue):
    vary = {"optim.lr": [0.02, 0.01], "trial.label_smoothing": [0.5]}
    both = {
        "question": "both",
        "set": {"optim.lr": 0.04},
        "each": [{}, {"optim.eps": 1e-5}],
        "arms": ["standard", "harmonic"],
    }
    runs = queue_file.read_queue(
        queue(
            {"vary": vary, "seeds": [0, 1]},
            {"question": "again", "set": {"optim.lr": 0.01, "trial.label_smoothing": 0.5}, "seeds": [1, 2]},
            both,
        )
    )
    assert [(run["set"]["optim.lr"], run["seed"]) for run in runs[:5]] == [
        (0.02, 0),
        (0.02, 1),
        (0.01, 0),
        (0.01, 1),
        (0.01, 2),
    ]
    assert all(
        run["trial"] == {"label_smoothing": 0.5} and run["settings"]["model.exponent"] == 8.0 for run in runs[:5]
    )
    assert [(run["head"], "optim.eps" in run["set"]) for run in runs[5:]] == [
        ("standard", False), ("harmonic", False), ("standard", True), ("harmonic", True),
    ]  # fmt: skip
    assert len({run["key"] for run in runs}) == 9


def test_a_key_is_of_all_that_is_trained_and_not_of_where_the_corpus_lies(queue):
    def key(**block):
        (run,) = queue_file.read_queue(queue(block))
        return run["key"]

    here = key(set={"data.dir": "data/prose"})
    assert here == key(set={"data.dir": "/elsewhere/prose"}, question="another", keep=True)
    others = [key(set={"data.dir": "data/other"}), key(set={"data.dir": "data/prose", "optim.eps": 1e-5})]
    others += [key(set={"data.dir": "data/prose"}, seeds=[1]), key(set={"data.dir": "data/prose"}, arms=["standard"])]
    others += [key(set={"data.dir": "data/prose", "trial.input_std": 0.1})]
    assert len({here, *others}) == 6


def test_a_config_file_is_overridden_and_counts_by_what_it_says(queue, run_config, tmp_path):
    path = tmp_path / "standard.yaml"
    config = run_config(model__similarity="dot", model__normalization="softmax")
    path.write_text(config.to_yaml())
    block = {"question": "q", "configs": [str(path)], "vary": {"optim.lr": [0.01, 0.02]}, "seeds": [3]}
    first, second = queue_file.read_queue(queue(block))
    assert (first["size"], first["head"], first["set"]) == ("2x32", "standard", {"optim.lr": 0.01})
    row = run_queue.train_one(second, tmp_path / "trained")
    trained = load_run_config(tmp_path / "trained" / "config.yaml")
    assert (trained.optim.lr, trained.seed, trained.model) == (0.02, 3, config.model)
    assert row["config"] == str(path)
    path.write_text(config.to_yaml().replace("steps: 6", "steps: 7"))
    assert {first["key"], second["key"]}.isdisjoint(run["key"] for run in queue_file.read_queue(queue(block)))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"size": ["tiny"]}, r"'q'.*size"),
        ({"arms": ["quarter"]}, "'q'.*'quarter' is missing"),
        ({"sizes": ["6x384"]}, "'q'.*'6x384' is missing"),
        ({"set": {"optim.lrate": 0.1}}, r"'q'.*optim\.lrate"),
        ({"set": {"model.n_head": 3}}, r"'q'.*n_head"),
        ({"read": "all"}, r"'q'.*read: expected one of .*got 'all'"),
        ({"configs": ["no/such.yaml"], "question": "q"}, r"'q'.*no/such\.yaml"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_a_queue_is_named_before_the_first_run(queue, block, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        queue_file.read_queue(queue({}, block))


@pytest.mark.parametrize("text", ["", "experiments: 3", "experiments: [{question: q"])
def test_a_file_that_is_no_queue_is_a_mistake_of_the_user(tmp_path, text):
    path = tmp_path / "queue.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"queue\.yaml"):
        queue_file.read_queue(path)


class _NoRepeats(yaml.SafeLoader):
    """YAML lets a later key silently replace an equal one."""

    def flatten_mapping(self, node):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: a key comes twice in {keys}"
        super().flatten_mapping(node)


@pytest.mark.parametrize("path", QUEUES, ids=lambda path: path.name)
def test_the_shipped_queues_are_sound(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    yaml.load(path.read_text(), _NoRepeats)
    runs = queue_file.read_queue(path)  # checks every setting
    assert runs
    assert {name for run in runs for name in run["trial"]} <= trials.TRIALS.keys()


def test_every_row_of_the_results_is_found_by_its_key():
    """Fails if what the name of a size stands for, or the name of a setting, has changed under finished runs."""
    queue = yaml.safe_load(run_queue.QUEUE.read_text())
    rows = read_jsonl(RESULTS)
    for row in rows:
        chosen, trial = report.own_settings(row)
        settings = queue["base"] | queue["sizes"][row["size"]] | queue_file.HEADS[row["head"]] | chosen
        run = {"settings": settings, "trial": trial, "seed": row["seed"], "config": None}
        assert queue_file.key_of(run) == row["key"], run_queue.describe(row)
    assert len({row["key"] for row in rows}) == len(rows) > 100


def test_a_row_holds_what_the_product_measured(queue, tmp_path):
    (run,) = queue_file.read_queue(queue({"set": {"optim.lr": 0.02}, "seeds": [3]}))
    row = run_queue.train_one(run, tmp_path / "queue")
    config = load_run_config(tmp_path / "queue" / "config.yaml")
    assert (config.optim.lr, config.seed, config.model.exponent) == (0.02, 3, 8.0)
    assert [tokens for tokens, _ in row["curve"]] == [3 * 128, 6 * 128]
    state = loop.setup(config.model_copy(update={"run_dir": str(tmp_path / "plain")}), resume=False)
    loop.fit(state)
    assert row["val_loss"] == loop.evaluate(state)["val_loss"]
    assert row["parameters"] == sum(p.numel() for p in state.bare_model.parameters())
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("log_every", [1, 10])
def test_stability_counts_rises_after_warmup(log_every):
    rows = [{"step": i + 1, "loss": 6.0 - 0.001 * i, "grad_norm": 0.5} for i in range(0, 160 * log_every, log_every)]
    rows[5]["loss"], rows[5]["grad_norm"] = 20.0, 99.0  # within warmup: left out
    rows[60]["loss"], rows[60]["grad_norm"] = 7.0, 3.0
    measured = run_queue.stability(rows, warmup=10 * log_every, clip=1.0)
    assert measured["spikes"] == 1
    assert measured["largest_rise"] == pytest.approx(7.0 - 6.0 + 0.001 * 49.5 * log_every, abs=1e-4)
    assert (measured["grad_norm_median"], measured["grad_norm_max"]) == (0.5, 3.0)
    assert measured["clipped_share"] == round(1 / 150, 4)


@pytest.fixture
def worked(tmp_path, monkeypatch):
    """A function that works a queue without training; returns the runs it tried. `before(n)`: ahead of the n-th."""
    tried = []

    def work(path: Path, before=lambda _: None) -> list[dict]:
        def train(command, **_):
            run = json.loads(command[command.index("--one") + 1])
            tried.append(run)
            (tmp_path / "runs" / run["key"]).mkdir(parents=True)
            before(len(tried))
            row = json.dumps(run | {"val_loss": 5.0, "seconds": 1})
            return SimpleNamespace(returncode=int(run["seed"] == 13), stdout=f"noise\n{row}\n", stderr="noise\nboom")

        monkeypatch.setattr(run_queue.subprocess, "run", train)
        run_queue.work(path, tmp_path / "out.jsonl", tmp_path / "runs", jobs=1)
        return tried

    return work


def test_a_queue_continues_where_it_was_cut_off(queue, worked, tmp_path, capsys):
    out, path = tmp_path / "out.jsonl", queue({"seeds": [0, 1, 13, 2]}, {"seeds": [3], "keep": True})
    done, cut, bad, *rest = queue_file.read_queue(path)
    out.write_text(json.dumps(done | {"val_loss": 5.0}) + "\n" + json.dumps(cut)[:40])  # as a crash leaves it
    assert [run["seed"] for run in worked(path)] == [1, 13, 2, 3]
    assert [row["seed"] for row in read_jsonl(out)] == [0, 1, 2, 3]
    assert [run["key"] for run in rest if (tmp_path / "runs" / run["key"]).exists()] == [rest[1]["key"]]
    assert f"FAILED {run_queue.describe(bad)}: ['boom']" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "measured", "left"),
    [
        (False, (), 0),
        ("reading", (), 1),
        ("reading", ("reading",), 0),
        (True, ("reading",), 1),
        (True, ("reading", "uses"), 0),
    ],
)
def test_a_run_is_trained_again_for_measures_that_its_row_lacks(queue, asked, measured, left):
    runs = queue_file.read_queue(queue({"read": asked}))
    rows = [{"key": runs[0]["key"], **{name: {} for name in measured}}]
    assert len(run_queue.not_done(runs, rows)) == len(runs) - 1 + left


def test_a_queue_is_edited_while_it_is_worked(queue, worked, capsys):
    path = queue({"seeds": [0, 1]})

    def edit(n):
        if n == 1:
            path.write_text(path.read_text()[:-30])  # half of it is saved
        else:
            queue({"seeds": [0, 1, 5]})

    assert [run["seed"] for run in worked(path, edit)] == [0, 1, 5]
    assert "going on with the queue as it was" in capsys.readouterr().out


def test_one_queue_at_a_time_writes_a_file(queue, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "argv", ["run_queue.py", "--queue", str(queue({})), "--out", str(out)])
    with run_queue.FileLock(out.with_suffix(".lock")), pytest.raises(SystemExit):
        run_queue.main()
    assert "another queue" in capsys.readouterr().err


@pytest.mark.slow
def test_a_queue_trains_through_the_command_line(queue, tmp_path):
    out, path = tmp_path / "out.jsonl", queue({"set": {"trial.none": 1}}, {"keep": True})
    program = ROOT / "experiments/run_queue.py"
    command = [sys.executable, program, "--queue", path, "--out", out, "--runs", tmp_path / "runs", "--jobs", "1"]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    (row,) = read_jsonl(out)
    assert load_run_config(tmp_path / "runs" / row["key"] / "config.yaml").optim.lr == 0.01
    assert "unknown trial none" in finished.stdout
    left = subprocess.run([*map(str, command), "--list"], capture_output=True, text=True, check=True)
    assert left.stdout == "1 runs left\ntiny harmonic exponent=8.0 lr=0.01 none=1 seed=0\n"
