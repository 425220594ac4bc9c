"""Options as they are typed: what a message calls them, and ranges that are what is accepted."""

import re
import shlex

import pytest
import typer

from harmonic_gpt.__main__ import app
from harmonic_gpt.cli.options import FORWARD_TOKENS, POSITIVE, SHARE
from harmonic_gpt.errors import InputError, option, options_spelled


@pytest.fixture(scope="session")
def model(token_folder, tmp_path_factory) -> str:
    from harmonic_gpt.run_config import load_run_config
    from harmonic_gpt.training.loop import train

    run = tmp_path_factory.mktemp("options") / "run"
    settings = {
        "run_dir": run, "data.dir": token_folder, "model.n_layer": 1, "model.n_head": 1, "model.n_embd": 8,
        "model.n_positions": 16, "optim.warmup_steps": 0, "train.steps": 1, "train.batch_tokens": 16, "eval.tokens": 32,
    }  # fmt: skip
    train(load_run_config(None, [f"--{key}={value}" for key, value in settings.items()]))
    return str(run)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prepare {docs} --vocab-size 256", "--vocab-size"),
        ("prepare {docs} --vocab-size 1048577", "--vocab-size"),
        ("prepare {docs} --vocab-size 300 --tokenizer gpt2", "either --tokenizer or --vocab-size"),
        ("prepare {docs} --validation-share 0", "'--validation-share': expected 0 < x < 1, got '0'"),
        ("prepare {docs} --validation-share 1", "'--validation-share': expected 0 < x < 1, got '1'"),
        ("prepare {docs} --validation nanogpt --validation-share 0.1", "--validation-share: nanoGPT's is"),
        ("prepare {docs} --validation some", "--validation"),
        ("prepare {docs} --text-column body", "Set --text-column"),
        ("prepare {docs} {docs}", "give one another name: --source 'PLACE"),
        ("train --config {config} --data.dir={new} --data.source={docs_path} --data.text_column=body",
         "Set data.text_column"),
        ("train --config {config} --data.source={docs_path}", "data.validation_share: 0.2 there, 0.05 asked for"),
        ("eval perplexity {model} --window 17", "--window 17: longer than the model's 16 positions"),
        ("eval perplexity {model} --stride 17", "--stride: expected 1 to the window of 16, got 17"),
        ("eval perplexity {model} --split test", "--split"),
        ("eval perplexity {model} --device abacus", "--device 'abacus'"),
        ("eval sample {model} --max-new-tokens 16", "--prompt has 1 tokens; with --max-new-tokens 16 they exceed"),
        ("eval lens {model} --prompt ''", "--prompt: expected 1 to 16 tokens, got 0"),
        ("eval geometry {model} --tokens 511", "'--tokens': expected 0 or x >= 512, got '511'"),
        ("eval geometry {model} --protocol loose", "--protocol"),
        ("eval geometry {model} --layers first", "--layers"),
        ("eval compare {model} --out {new} --reading-tokens 511", "--reading-tokens"),
        ("eval lm-eval {model} --tasks ,", "--tasks: expected at least one"),
        ("export {model} --out {new} --repo name", "--repo: expected USER/NAME, got 'name'"),
        ("push {model} --repo name", "--repo: expected USER/NAME, got 'name'"),
        ("import nanogpt x.pt --out {new} --exponent 0", "'--exponent': expected x > 0, got '0'"),
        ("import nanogpt x.pt --out {new} --exponent inf", "--exponent"),
        ("import nanogpt x.pt --out {new} --squared-distance-exponent nan", "--squared-distance-exponent"),
    ],
)  # fmt: skip
def test_a_message_names_the_option_as_it_is_typed(
    cli, corpus, run_config, token_folder, model, tmp_path, command, message
):
    config = tmp_path / "config.yaml"
    config.write_text(run_config().to_yaml())
    places = {
        "docs": f"--out {tmp_path / 'tokens'} --source {corpus}", "docs_path": corpus, "config": config,
        "new": tmp_path / "new", "model": model,
    }  # fmt: skip
    code, _, err = cli(*shlex.split(command.format(**places)))
    assert code == 2
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("settings", "inside", "outside"),
    [
        (SHARE, ["1e-300", "0.999"], ["0", "1", "nan", "many"]),
        (POSITIVE, ["1e-300", "1e300"], ["0", "-1", "inf", "nan"]),
        (FORWARD_TOKENS, ["0", "512"], ["1", "511", "-1", "2.5"]),
    ],
)
def test_what_is_printed_is_what_is_accepted(settings, inside, outside):
    assert all(settings["parser"](text) is not None for text in inside)
    for text in outside:
        with pytest.raises(typer.BadParameter, match=re.escape(text)):
            settings["parser"](text)


@pytest.mark.parametrize("arguments", [["--tokens", 0], ["--tokens", 512]])
def test_the_least_tokens_of_geometry_are_enough(cli, model, arguments):
    assert cli("eval", "geometry", model, *arguments)[0] == 0


@pytest.mark.parametrize("temperature", [0, 1e-50, 1e-6, 1e-5, "inf"])
def test_every_temperature_samples(cli, model, temperature):
    assert cli("eval", "sample", model, "--max-new-tokens", 2, "--temperature", temperature)[0] == 0


def test_names_in_python_and_inside_another_spelling():
    assert option("vocab_size") == "vocab_size"
    with pytest.raises(InputError), options_spelled("data.{}".format):
        raise InputError(option("vocab_size"))
    assert option("vocab_size") == "vocab_size"


def commands(command):
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner)
    if not hasattr(command, "commands"):
        yield command


def test_every_option_is_spelled_as_messages_spell_it():
    """`errors.option` turns a parameter into its option by rule: no command may name one otherwise."""
    for command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"--{parameter.name.replace('_', '-')}" in parameter.opts, (command.name, parameter.opts)
