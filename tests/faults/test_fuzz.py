"""Whatever stands in a config, a manifest or a checkpoint's JSON: it is read, or refused in words. Never a traceback.

What must be read stands beside each: a program that refuses everything fails here.
"""

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harmonic_gpt.__main__ import main
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import RunConfig, fields, load_run_config
from harmonic_gpt.runs import checkpoint as ckpt

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_harmonic.yaml"
SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 2**70, "sqrt", "1e-3", "/"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [path for path, _ in fields()] + ["model", "data", "train", "nonsense", "model.nonsense"]
) | st.text(max_size=10)


GOOD_SETTINGS = [
    {},
    {"model": {}},
    {"train.steps": 300, "seed": 2**31 - 1},
    {"optim.lr": "1e-3", "optim.betas": [0.9, 0.999]},  # YAML's 1e-3 is a text
    {"model.n_embd": 48, "model.n_head": 3, "model.exponent": 1, "model.hidden_scale": None},
    {"run_dir": "runs/été", "data.source": ["pydocs", "a.txt"], "data.weights": {"pydocs": 1, "a.txt": 2}},
]


def config_of(path: Path, values: dict) -> RunConfig:
    """Read the settings {dotted name: value} from a YAML file."""
    nested: dict = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[last] = value
    path.write_text(yaml.safe_dump(nested))
    return load_run_config(path)


@SETTINGS
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_configs(tmp_path, values):
    with suppress(InputError):
        assert isinstance(config_of(tmp_path / "config.yaml", values), RunConfig)


@pytest.mark.parametrize("values", GOOD_SETTINGS)
def test_good_configs(tmp_path, values):
    config = config_of(tmp_path / "config.yaml", values).model_dump()
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        read = config[section][field] if section else config[field]
        assert value == {} or read == (1e-3 if value == "1e-3" else tuple(value) if name == "optim.betas" else value)


@settings(SETTINGS, max_examples=60)
@given(st.dictionaries(NAMES, VALUES, max_size=3))
@example({"run_dir": "a\0b"})
@example({"run_dir": "\ud800"})
@example({"data.dir": "~nobody-of-this-name/x"})
@example({"data.dir": "x" * 5000})
@example({"train.steps": 10**400})
@example({"model.n_embd": 12 * 2**16, "model.n_head": 1})
@example({"model.n_embd": 12 * 10**30})
@example({"train.batch_tokens": 1024 * 10**400})
@example({"data.vocab_size": 10**30})
@example({"model.exponent": 1e308})
@example({"model.hidden_scale": 5e-324})
def test_the_command(capsys, values):
    """`train --dry-run`: 0 or 2, and on 2 one message."""
    code, _, err = dry_run(capsys, values)
    assert (code, err.startswith("error: ")) in ((0, False), (2, True)), err


def dry_run(capsys, values: dict) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    overrides = [
        f"--{name}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for name, value in values.items()
    ]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(CONFIG), *overrides, "--model.n_layer=1", "--dry-run"])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.mark.parametrize("values", [settings for settings in GOOD_SETTINGS if "model" not in settings])
def test_the_command_with_good_settings(capsys, values):
    code, out, err = dry_run(capsys, values)
    assert (code, err) == (0, "")
    assert "parameters:" in out


@SETTINGS
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"!!python/object/apply:os.system ['true']")
@example(b"model: !!python/name:os.system")
@example(b"a: &a [*a]")
@example(b"model: &m {n_embd: 32, x: *m}")
@example(b"\xff\xfe")
@example(b"{" * 5000)
def test_config_files_of_any_bytes(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with suppress(InputError):
        load_run_config(path)


@pytest.mark.parametrize(
    "content",
    [
        b"train: {steps: 700}",
        b"# a comment\r\ntrain:\r\n  steps: 700\r\n",
        b"\xef\xbb\xbftrain: {steps: 700}",
        b'{"train": {"steps": 700}}',
        b"train: &x {steps: 700}",
    ],
)
def test_good_config_files(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert load_run_config(path).train.steps == 700


@SETTINGS
@given(st.lists(st.text(max_size=12) | NAMES.map(lambda name: f"--{name}=0"), max_size=3))
def test_overrides(overrides):
    with suppress(InputError):
        load_run_config(None, overrides)


def test_good_overrides():
    config = load_run_config(None, ["--train.steps=700", "--optim.lr=1e-3", "--model.hidden_scale=null", "--seed=0"])
    assert (config.train.steps, config.optim.lr, config.model.hidden_scale, config.seed) == (700, 1e-3, None, 0)


@pytest.fixture(scope="module")
def checkpoint(token_folder, tmp_path_factory):
    from harmonic_gpt.training.loop import train

    run_dir = tmp_path_factory.mktemp("fuzz") / "run"
    sizes = ["--model.n_layer=1", "--model.n_head=1", "--model.n_embd=8", "--model.n_positions=16"]
    short = ["--optim.warmup_steps=0", "--train.steps=1", "--train.batch_tokens=64", "--eval.tokens=16"]
    places = [f"--run_dir={run_dir}", f"--data.dir={token_folder}"]
    assert train(load_run_config(None, [*sizes, *short, *places])) == 0
    return run_dir / "step-000001"


def mutated(document: dict):
    """`document` with one value, anywhere in it, replaced or removed."""

    def paths(value, prefix=()):
        yield prefix
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from paths(inner, (*prefix, key))

    def change(path, value, remove):
        copy = json.loads(json.dumps(document))
        if not path:
            return value
        place = copy
        for key in path[:-1]:
            place = place[key]
        if remove:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return copy

    return st.builds(change, st.sampled_from(list(paths(document))), VALUES, st.booleans())


def write_json(path, value):
    path.write_text(json.dumps(value, default=str))


def test_state_of_checkpoints(checkpoint, tmp_path):
    state = json.loads((checkpoint / ckpt.STATE).read_text())

    def read(value) -> RunConfig:
        write_json(tmp_path / ckpt.STATE, value)
        return load_run_config(None, values=ckpt.read_state(tmp_path)["config"])

    @SETTINGS
    @given(mutated(state))
    def check(value):
        with suppress(InputError):
            read(value)

    check()
    optional = {"skipped_steps", "skipped_in_a_row", "wandb_id"}
    for good in (
        state,
        state | {"wandb_id": "abc", "of a later version": [1, 2]},
        {key: value for key, value in state.items() if key not in optional},
    ):
        assert read(good).train.steps == 1


def test_checksums(checkpoint, tmp_path):
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    checksums = json.loads((checkpoint / ckpt.CHECKSUMS).read_text())

    @SETTINGS
    @given(mutated(checksums))
    @example(dict.fromkeys(checksums, 7))
    @example({"../../etc": "x", "\0": "y"})
    def check(value):
        write_json(copy / ckpt.CHECKSUMS, value)
        assert (ckpt.find_corruption(copy) is None) == (value == checksums)

    check()


def test_manifests(token_folder, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(token_folder, copy)
    manifest = json.loads((token_folder / "manifest.json").read_text())

    def read(value) -> list[np.ndarray]:
        write_json(copy / "manifest.json", value)
        folder = open_token_folder(copy)
        folder.fingerprint()
        return [folder.tokens(split).read(0, min(8, len(folder.tokens(split)))) for split in ("train", "val")]

    @SETTINGS
    @given(mutated(manifest))
    def check(value):
        with suppress(InputError):
            assert all(isinstance(ids, np.ndarray) for ids in read(value))

    check()
    expected = [np.fromfile(token_folder / f"{split}-00000.bin", "<u2", 8) for split in ("train", "val")]
    for good in (manifest, manifest | {"of a later program": {}}, json.loads(json.dumps(manifest, sort_keys=True))):
        np.testing.assert_array_equal(read(good), expected)


@SETTINGS
@given(st.binary(max_size=200))
@example(b"PK\x03\x04")
@example(b"\x80\x04.")
@example(struct.pack("<Q", 2**60))
def test_tensors_of_checkpoints(tmp_path, content):
    path = tmp_path / "optimizer.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not what training writes"):
        ckpt.load_state(path)


def test_good_tensors_of_checkpoints(tmp_path):
    value = {"step": 3, "names": ["a", None], "state": {0: {"exp_avg": torch.arange(4.0)}}}
    torch.save(value, tmp_path / "optimizer.pt")
    loaded = ckpt.load_state(tmp_path / "optimizer.pt")
    assert torch.equal(loaded["state"][0].pop("exp_avg"), value["state"][0].pop("exp_avg"))
    assert loaded == value
