"""Whatever stands in a config, a manifest or a checkpoint's JSON: it is read, or refused in words. Never a
traceback."""

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
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


@SETTINGS
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_configs(tmp_path, values):
    nested: dict = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(nested))
    with suppress(InputError):
        assert isinstance(load_run_config(path), RunConfig)


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
    overrides = [
        f"--{name}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for name, value in values.items()
    ]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(CONFIG), *overrides, "--model.n_layer=1", "--dry-run"])
    text = capsys.readouterr().err
    assert (ended.value.code or 0, text.startswith("error: ")) in ((0, False), (2, True)), text


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


@SETTINGS
@given(st.lists(st.text(max_size=12) | NAMES.map(lambda name: f"--{name}=0"), max_size=3))
def test_overrides(overrides):
    with suppress(InputError):
        load_run_config(None, overrides)


@pytest.fixture(scope="module")
def checkpoint(token_folder, tmp_path_factory):
    from harmonic_gpt.training.loop import train

    sizes = [
        "--model.n_layer=1",
        "--model.n_head=1",
        "--model.n_embd=8",
        "--model.n_positions=16",
        "--optim.warmup_steps=0",
    ]
    run_dir = tmp_path_factory.mktemp("fuzz") / "run"
    short = [
        "--train.steps=1",
        "--train.batch_tokens=64",
        "--eval.tokens=16",
        f"--run_dir={run_dir}",
        f"--data.dir={token_folder}",
    ]
    assert train(load_run_config(None, sizes + short)) == 0
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

    @SETTINGS
    @given(mutated(state))
    def check(value):
        write_json(tmp_path / ckpt.STATE, value)
        with suppress(InputError):
            read = ckpt.read_state(tmp_path)
            load_run_config(None, values=read["config"])

    check()


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
        problem = ckpt.find_corruption(copy)
        assert problem is not None or value == checksums

    check()


def test_manifests(token_folder, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(token_folder, copy)
    manifest = json.loads((token_folder / "manifest.json").read_text())

    @SETTINGS
    @given(mutated(manifest))
    def check(value):
        write_json(copy / "manifest.json", value)
        with suppress(InputError):
            folder = open_token_folder(copy)
            for split in ("train", "val"):
                tokens = folder.tokens(split)
                assert isinstance(tokens.read(0, min(8, len(tokens))), np.ndarray)
            folder.fingerprint()

    check()


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
