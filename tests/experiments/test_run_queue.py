"""The bench of benchmarks/recipe.py on runs of seconds: what it trains is what the product trains, and a cut-off queue
continues."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import corpus_share  # noqa: E402
import rare_tokens  # noqa: E402
import recipe  # noqa: E402
import recipe_report  # noqa: E402
import recipe_trials  # noqa: E402

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM  # noqa: E402
from harmonic_gpt.data.split import content_hash, is_validation  # noqa: E402
from harmonic_gpt.run_config import load_run_config  # noqa: E402
from harmonic_gpt.training import loop  # noqa: E402


@pytest.fixture
def grid(token_folder, tmp_path):
    """A function that writes a grid of the given experiments, at a size of seconds, and returns its path."""

    def write(*experiments: dict) -> Path:
        tiny = {
            "model.n_layer": 1,
            "model.n_head": 2,
            "model.n_embd": 16,
            "model.n_positions": 32,
            "train.steps": 6,
            "eval.every": 3,
        }
        tiny |= {
            "train.batch_tokens": 128,
            "optim.warmup_steps": 2,
            "optim.lr": 0.01,
            "eval.tokens": 512,
            "train.log_every": 1,
        }
        heads = {
            "harmonic": {"model.exponent": 8.0},
            "standard": {"model.similarity": "dot", "model.normalization": "softmax"},
        }
        path = tmp_path / "grid.yaml"
        entries = [{"question": "q", "size": "tiny", "head": "harmonic"} | e for e in experiments]
        base = {"data.dir": str(token_folder)}
        path.write_text(yaml.safe_dump({"base": base, "sizes": {"tiny": tiny}, "heads": heads, "experiments": entries}))
        return path

    return write


def test_grid_expands_in_order_and_names_equal_runs_once(grid):
    runs = recipe.read_grid(
        grid(
            {"vary": {"optim.lr": [0.02, 0.01], "trial.head_lr": [0.5]}, "seeds": [0, 1]},
            {
                "question": "another",
                "set": {"optim.lr": 0.01},
                "trial": {"head_lr": 0.5},
                "seeds": [1, 2],
            },  # seed 1 is there already
        )
    )
    assert [(r["settings"]["optim.lr"], r["seed"]) for r in runs] == [
        (0.02, 0),
        (0.02, 1),
        (0.01, 0),
        (0.01, 1),
        (0.01, 2),
    ]
    assert all(r["trial"] == {"head_lr": 0.5} and r["settings"]["model.exponent"] == 8.0 for r in runs)
    assert len({r["key"] for r in runs}) == 5


def test_a_row_holds_what_the_product_measured(grid, tmp_path):
    (item,) = recipe.read_grid(grid({"set": {"optim.lr": 0.02}, "seeds": [3]}))
    row = recipe.train_one(item, tmp_path / "bench")
    config = load_run_config(tmp_path / "bench" / "config.yaml")
    assert (config.optim.lr, config.seed, config.model.exponent) == (0.02, 3, 8.0)
    assert [tokens for tokens, _ in row["curve"]] == [3 * 128, 6 * 128]
    run = loop.setup(config.model_copy(update={"run_dir": str(tmp_path / "plain")}), resume=False)
    loop.fit(run)
    assert row["val_loss"] == loop.evaluate(run)["val_loss"]
    assert row["parameters"] == sum(p.numel() for p in run.bare_model.parameters())
    assert json.loads(json.dumps(row)) == row


def _train(grid, tmp_path, experiment: dict) -> tuple[dict, loop.Run]:
    """Train with a look at the state afterwards: row and run."""
    kept = []
    (item,) = recipe.read_grid(grid(experiment))
    original = loop.setup
    loop.setup = lambda *args, **kwargs: kept.append(original(*args, **kwargs)) or kept[-1]
    try:
        return recipe.train_one(item, tmp_path / "run"), kept[-1]
    finally:
        loop.setup = original


@pytest.mark.parametrize(
    "trial",
    [{"learn_exponent": 0.0}, {"anneal_exponent": [8.0, 8.0]}, {"head_lr": 1.0}, {"label_smoothing": 0.0}],
    ids=lambda t: next(iter(t)),
)
def test_a_trial_that_changes_nothing_trains_the_same(grid, tmp_path, trial):
    plain, _ = _train(grid, tmp_path, {})
    tried, _ = _train(grid, tmp_path, {"trial": trial})
    assert tried["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)


def test_temperature_of_one_trains_the_same(grid, tmp_path):
    plain, _ = _train(grid, tmp_path, {"head": "standard"})
    tried, _ = _train(grid, tmp_path, {"head": "standard", "trial": {"learn_temperature": 0.0}})
    assert tried["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)


def test_trials_do_what_they_say(grid, tmp_path):
    row, run = _train(grid, tmp_path, {"trial": {"anneal_exponent": [4.0, 16.0]}})
    assert row["measured"]["exponent"] == run.bare_model.lm_head.spec.exponent == pytest.approx(16.0)
    row, _ = _train(grid, tmp_path, {"trial": {"learn_exponent": 1.0}})
    assert row["measured"]["exponent"] != pytest.approx(8.0, abs=1e-3)
    row, _ = _train(grid, tmp_path, {"head": "standard", "trial": {"learn_temperature": 1.0}})
    assert row["measured"]["temperature"] != pytest.approx(1.0, abs=1e-3)
    untied = {"set": {"model.tie_word_embeddings": False}}
    _, run = _train(grid, tmp_path, untied | {"trial": {"head_lr": 0.0}})  # the centers stay where they started
    assert run.bare_model.lm_head.weight.std().item() == pytest.approx(0.25, rel=0.05)
    norms = [n for _, n, _ in _train(grid, tmp_path, untied | {"trial": {"head_lr": 0.0}})[0]["center_norms"]]
    assert norms[0] == norms[-1]
    _, run = _train(grid, tmp_path, {"trial": {"muon": 0.0}})
    matrix = run.bare_model.transformer.h[0].mlp.c_fc.weight
    assert matrix.std().item() == pytest.approx(0.02, rel=0.1)  # Muon at rate 0, and AdamW no longer has it
    _, run = _train(grid, tmp_path, {"trial": {"muon": 1.0}})
    assert run.bare_model.transformer.h[0].mlp.c_fc.weight.std().item() > 0.0205
    _, run = _train(grid, tmp_path, {"trial": {"random_signs": True}})
    assert 0 < (run.bare_model.transformer.ln_f.weight < 0).sum() < 16


def test_the_trial_that_moved_into_the_product_is_the_products(grid, tmp_path):
    """Rows of docs/results made by the trial are what the settings give today, to the last bit."""
    untied = {"model.tie_word_embeddings": False}
    tried, _ = _train(grid, tmp_path, {"set": untied, "trial": {"head_lr": 2.0, "muon": 1.0}})
    settings, _ = _train(grid, tmp_path, {"set": untied | {"optim.optimizer": "muon", "optim.head_lr": 2.0}})
    plain, _ = _train(grid, tmp_path, {"set": untied})
    assert settings["curve"] == tried["curve"] != plain["curve"]


def test_input_std_is_the_embedding_s(run_config):
    run = loop.setup(run_config(model__tie_word_embeddings=False), resume=False)
    centers = run.bare_model.lm_head.weight.detach().clone()
    recipe_trials.apply_trial(run, {"input_std": 0.3})
    assert run.bare_model.transformer.wte.weight.std().item() == pytest.approx(0.3)
    assert run.bare_model.lm_head.weight.equal(centers)


@pytest.mark.parametrize("head", ["harmonic", "standard"])
@pytest.mark.parametrize("trial", [{"frequency_start": 0.7}, {"frequency_bias": 1.0}], ids=lambda t: next(iter(t)))
def test_a_fresh_model_knows_the_frequencies(run_config, head, trial):
    names = {"harmonic": ("euclidean", "harmax"), "standard": ("dot", "softmax")}[head]
    config = run_config(
        model__tie_word_embeddings=False, model__similarity=names[0], model__normalization=names[1], model__n_embd=64
    )
    run = loop.setup(config, resume=False)
    share = recipe_trials._log_frequencies(run)
    assert share.exp().sum().item() == pytest.approx(1, rel=1e-4)
    before = loop.evaluate(run)["val_loss"]
    measured = recipe_trials.apply_trial(run, trial)
    entropy = -(share.exp() * share).sum().item()
    assert abs(loop.evaluate(run)["val_loss"] - entropy) < 0.5 * abs(before - entropy)
    assert measured() == ({"bias moved": 0.0} if "frequency_bias" in trial else {})


def test_a_frequency_bias_learns_unless_its_rate_is_0(grid, tmp_path):
    assert _train(grid, tmp_path, {"trial": {"frequency_bias": 1.0}})[0]["measured"]["bias moved"] > 1e-3
    assert _train(grid, tmp_path, {"trial": {"frequency_bias": 0.0}})[0]["measured"]["bias moved"] == 0


def test_smoothing_is_of_training_alone(grid, tmp_path):
    plain, _ = _train(grid, tmp_path, {})
    row, run = _train(grid, tmp_path, {"trial": {"label_smoothing": 0.5}})
    assert row["val_loss"] == loop.evaluate(run)["val_loss"] != plain["val_loss"]
    del run.bare_model.lm_head.forward  # the product's own loss
    assert row["val_loss"] == pytest.approx(loop.evaluate(run)["val_loss"], rel=1e-5)


def test_stability_counts_rises_after_warmup():
    rows = [{"step": i + 1, "loss": 6.0 - 0.001 * i, "grad_norm": 0.5} for i in range(160)]
    rows[5]["loss"], rows[5]["grad_norm"] = 20.0, 99.0  # within warmup: left out
    rows[140]["loss"], rows[140]["grad_norm"] = 7.0, 3.0
    found = recipe.stability(rows, warmup=10, clip=1.0)
    assert found["spikes"] == 1
    assert found["largest_rise"] == pytest.approx(7.0 - 5.8705, abs=1e-4)
    assert (found["grad_norm_median"], found["grad_norm_max"], found["clipped_share"]) == (0.5, 3.0, 0.0067)


@pytest.mark.slow
def test_a_queue_continues_where_it_was_cut_off(grid, tmp_path):
    """Through the command line: a finished run is skipped, a line that was cut short is trained again, a failed run
    does not stop it."""
    out, runs = tmp_path / "out.jsonl", tmp_path / "runs"
    bad, good = {"set": {"model.n_head": 3}}, {"set": {"optim.lr": 0.02}}
    path = grid({}, bad, good)
    done = recipe.read_grid(path)[0]
    out.write_text(json.dumps({k: v for k, v in done.items() if k != "settings"} | {"val_loss": 5.0}) + "\n")
    with out.open("a") as file:
        file.write('{"key": "' + recipe.read_grid(path)[2]["key"] + '", "val_lo\n')
    command = [sys.executable, str(BENCHMARKS / "recipe.py"), "--grid", path, "--out", out, "--runs", runs]
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    rows = recipe.read_results(out)
    assert [row["set"] for row in rows] == [{}, {"optim.lr": 0.02}]
    assert "FAILED tiny harmonic n_head=3" in finished.stdout
    assert "n_head" in finished.stdout.split("FAILED")[1].splitlines()[0].split(":", 1)[1]
    assert not (runs / rows[1]["key"]).exists()


def test_the_report_puts_seeds_side_by_side(grid, tmp_path):
    row, _ = _train(grid, tmp_path, {})
    rows = [row | {"seed": seed, "val_loss": 5.0 + 0.1 * seed} for seed in (0, 1, 2)]
    rows.append(row | {"head": "standard", "set": {"optim.lr": 0.5}, "val_loss": 4.5})
    lines = recipe_report.table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| lr 0.5 | 0 | 4.5000 |")
    assert lines[3].startswith("| base | 0,1,2 | 5.1000 +- 0.1000 |")
    recipe_report.draw(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_heads_are_compared_seed_by_seed():
    losses = {"harmonic": {0: 9.0, 1: 5.1, 2: 5.3, 3: 5.2}, "standard": {1: 5.0, 2: 5.3, 3: 5.1, 4: 1.0}}
    rows = [
        {
            "question": "confirmation",
            "size": "tiny",
            "head": head,
            "seed": seed,
            "val_loss": loss,
            "set": {},
            "trial": {},
        }
        for head, seeds in losses.items()
        for seed, loss in seeds.items()
    ]
    rows += [row | {"question": "one seed"} for row in rows[:1]]
    # A setting with fewer seeds, however good, is not what is compared; another corpus is another comparison
    rows += [
        row | {"set": {"optim.lr": 1.0}, "val_loss": 1.0}
        for row in rows
        if row["seed"] in (1, 2) and row["head"] == "standard"
    ]
    rows += [row | {"set": {"data.dir": "a/corpus-4"}, "val_loss": 2.0} for row in rows if row["seed"] == 3]
    line = recipe_report.heads_compared(rows).splitlines()[2:]
    # differences 0.1, 0, 0.1: mean 0.0667, standard error 0.0333, t of 0.975 with 2 degrees of freedom 4.303
    assert line == [
        "| confirmation | tiny | 1,2,3 | 5.2000 +- 0.1000 | 5.1333 +- 0.1528 | +0.0667 | [-0.0768, +0.2101] |"
    ]


def test_the_trend_over_width_is_a_line_with_its_interval():
    gaps = {"2x64": [0.06, 0.08], "2x128": [0.05, 0.05], "4x192-gpt2": [0.04, 0.05]}
    rows = [
        {"question": "c", "size": size, "head": head, "seed": seed, "val_loss": 5.0 + gap * (head == "harmonic")}
        | {"set": {}, "trial": {}}
        for size, both in gaps.items()
        for seed, gap in enumerate(both)
        for head in ("harmonic", "standard")
    ]
    rows += [row | {"question": "two widths"} for row in rows if row["size"] != "2x64"]
    _, standard, gap = recipe_report.trend_over_width(rows).splitlines()[2:]
    assert standard == "| c | 64, 128, 192 | standard | +0.0000 | 5.0000 | [5.0000, 5.0000] |"
    x = [6, 6, 7, 7, math.log2(192), math.log2(192)]
    design = torch.tensor([[1.0, v] for v in x], dtype=torch.float64)
    y = torch.tensor([g for both in gaps.values() for g in both], dtype=torch.float64)
    beta = torch.linalg.lstsq(design, y).solution
    at = torch.tensor([1.0, math.log2(768)], dtype=torch.float64)
    variance = (y - design @ beta).square().sum() / 4 * (at @ torch.linalg.inv(design.T @ design) @ at)
    half = 2.7764451 * variance.sqrt()  # t of 0.975 with 4 degrees of freedom
    value = at @ beta
    assert (
        gap
        == f"| c | 64, 128, 192 | harmonic - standard | {beta[1]:+.4f} | {value:.4f} | [{value - half:.4f}, {value + half:.4f}] |"
    )


def test_losses_by_frequency_add_up():
    model = HarmonicGPT2ForCausalLM(
        HarmonicGPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    ).eval()
    blocks = torch.randint(30, (5, 17))
    classes = torch.arange(30) % 5  # of the six classes one is empty
    found = rare_tokens.by_frequency(model, blocks, classes)
    logits = model(input_ids=blocks[:, :-1]).logits.detach().double().flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, blocks[:, 1:].flatten(), reduction="none")
    of_target = classes[blocks[:, 1:].flatten()]
    assert found["mass"].sum() == pytest.approx(1) == found["share"].sum()
    assert found["mass"][2] == pytest.approx(logits.softmax(-1)[:, classes == 2].sum(1).mean().item(), rel=1e-6)
    assert found["loss"][:5] == pytest.approx([losses[of_target == k].mean().item() for k in range(5)], rel=1e-6)
    assert found["share"][3] == pytest.approx((of_target == 3).double().mean().item())
    assert found["norm"][1] == pytest.approx(model.lm_head.weight[classes == 1].norm(dim=1).mean().item(), rel=1e-6)


def test_a_share_of_the_corpus_keeps_the_validation_text():
    texts = [f"document {i}" for i in range(4000)]
    validation = {text for text in texts if is_validation(content_hash(text), corpus_share.VALIDATION_SHARE)}
    quarter, sixteenth = ({text for text in texts if corpus_share.keeps(text, fraction)} for fraction in (4, 16))
    assert validation < sixteenth < quarter
    assert len(sixteenth - validation) == pytest.approx(len(set(texts) - validation) / 16, rel=0.2)
