"""Configuration: every mistake is named with its dotted path, all at once."""

import re
from pathlib import Path

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import RunConfig, describe_fields, fields, load_run_config
from harmonic_gpt.training.plan import dry_run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_parse_and_dry_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no data here: the plan needs none
    config = load_run_config(path)
    text = dry_run(config)
    assert "parameters:" in text
    assert config.model.head in text.splitlines()[1]


@pytest.mark.parametrize("pair", ["quickstart_{}", "gpt2_small_{}", "gpt2_small_{}_paper", "babylm_small_{}"])
def test_harmonic_and_standard_differ_only_in_head_and_rates(pair):
    harmonic, standard = (
        load_run_config(CONFIGS[0].parent / f"{pair.format(head)}.yaml").model_dump()
        for head in ("harmonic", "standard")
    )
    allowed = {
        "run_dir",
        "model.head",
        "model.exponent",
        "model.hidden_scale",
        "model.center_std",
        "optim.lr",
        "optim.head_lr_scale",  # each head at its own best
        "optim.weight_decay",
        "optim.eps",
        "optim.warmup_steps",
    }
    differing = {path for path, _ in fields() if _get(harmonic, path) != _get(standard, path)}
    assert {"model.head"} <= differing <= allowed


def _get(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def test_overrides_are_typed():
    arguments = [
        "--optim.lr=6e-4",
        "--model.exponent",
        "28",
        "--optim.betas=[0.9, 0.99]",
        "--data.source=null",
        "--train.compile=true",
    ]
    config = load_run_config(None, arguments)
    assert (config.optim.lr, config.model.exponent, config.optim.betas) == (6e-4, 28.0, (0.9, 0.99))
    assert config.data.source is None
    assert config.train.compile is True


@pytest.mark.parametrize("name", ["2020-13-45", "2024-01-01", "123", "1e5"])
def test_names_that_yaml_would_take_for_something_else(name):
    assert load_run_config(None, [f"--run_dir={name}"]).run_dir == name


def test_yaml_round_trip(tmp_path):
    config = load_run_config(None, ["--optim.lr=0.00012", "--model.exponent=11"])
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_run_config(tmp_path / "c.yaml") == config


def test_all_problems_are_reported_together(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "model: {n_head: 7, exponnt: 3}\noptim: {lr: -1}\ntrain: {precision: fp16, steps: many}\nseeds: 3\n"
    )
    with pytest.raises(InputError) as caught:
        load_run_config(path, ["--train.batchtokens=5", "--data.validation_share=1.5"])
    text = str(caught.value)
    for expected in (
        "model.exponnt: unknown key; did you mean model.exponent?",
        "optim.lr: input should be greater than 0, got -1",
        "train.precision: fp16 is not supported",
        "train.steps: input should be a valid integer",
        "seeds: unknown key; did you mean seed?",
        "train.batchtokens: unknown key; did you mean train.batch_tokens?",
        "data.validation_share: input should be less than 1",
        # A combination, although single fields are wrong too
        "model.n_embd must be a multiple of model.n_head, got 768 and 7",
    ):
        assert expected in text, text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--model.n_head=7", "--train.batch_tokens=1000"], "multiple of model.n_positions"),
        (["--model.exponent=.inf"], "model.exponent: "),
        (["--optim.weight_decay=.inf"], "optim.weight_decay: input should be a finite number, got inf"),
        (["--optim.lr=.nan"], "optim.lr: input should be a finite number, got nan"),
        (["--optim.betas=[0.9, .nan]"], "optim.betas: input should be a finite number, got nan"),
        (["--seed=99999999999"], "seed: "),
        (["--model.n_head=7"], "model.n_embd must be a multiple of model.n_head, got 768 and 7"),
        (["--train.batch_tokens=1000"], "multiple of model.n_positions"),
        (["--optim.warmup_steps=5000"], "warmup_steps must be less than train.steps"),
        (["train.steps=5"], "expected an override"),
        (["--train.steps"], "needs a value"),
        (["--train.steps=[1"], "not a YAML value"),
        (["--seed=2", "--seed.x=1"], "seed is a value, not a section"),
        (["--lr=1"], "did you mean optim.lr?"),
        (["--train=3"], "train: "),
        (["--model.exponent=cube"], "model.exponent: "),
        (["--checkpoint.push_to=name"], "checkpoint.push_to: expected USER/NAME, got 'name'"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_run_config(None, overrides)


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "a: [1\n", "just text", "\x00"])
def test_files_that_are_not_configs(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError):
        load_run_config(tmp_path / "c.yaml")


def test_a_missing_file():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_run_config("nowhere.yaml")


def test_help_lists_every_field():
    text = describe_fields()
    for path, field in fields():
        assert f"--{path}=" in text
        assert field.description
        assert field.description in text
    assert RunConfig().model_dump() == load_run_config(None).model_dump()


def test_old_names_are_read_and_the_command_line_wins(tmp_path):
    old, new, both = tmp_path / "old.yaml", tmp_path / "new.yaml", tmp_path / "both.yaml"
    old.write_text("optim: {head_lr: 2}")
    new.write_text("optim: {head_lr_scale: 2}")
    both.write_text("optim: {head_lr: 2, head_lr_scale: 3}")
    assert load_run_config(old).optim.head_lr_scale == 2
    for path in (old, new):
        for name in ("head_lr", "head_lr_scale"):
            assert load_run_config(path, [f"--optim.{name}=4"]).optim.head_lr_scale == 4
    with pytest.raises(InputError, match=r"head_lr: unknown key; did you mean optim\.head_lr_scale"):
        load_run_config(both)
