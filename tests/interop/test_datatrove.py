"""examples/datatrove_tokens.py: datatrove itself, in an environment of its own, writes what training opens."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from harmonic_gpt.data.inspect import inspect_folder
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.training import loop
from tests.interop import environments

# What Slurm does with a job array, one task after the other. `srun OPTIONS COMMAND` runs the command
SBATCH = """#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
if grep -q launch_pickled_pipeline "$script"; then
    for task in $(seq 0 "$last"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost RUN_OFFSET=0 bash "$script" >> "$SLURM_LOG" 2>&1 || exit 1
    done
fi
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables for a process that has datatrove and this package, and a stand-in for Slurm."""
    folder = tmp_path_factory.mktemp("datatrove")
    python = environments.extended(folder / "venv", "datatrove==0.10.1", "orjson")
    if python is None:
        pytest.skip("the package registry cannot be reached")
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}.items():
        (python.parent / name).write_text(text)
        (python.parent / name).chmod(0o755)
    variables = environments.clean_environ(folder / "home")
    return variables | {
        "PYTHONPATH": str(environments.ROOT),
        "PATH": f"{python.parent}:{variables['PATH']}",
        "SLURM_LOG": str(folder / "slurm.log"),
    }


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    """The corpus in three files, with an empty document and a literal end-of-text among them."""
    rows = [*corpus.read_text().splitlines(), '{"text": ""}', json.dumps({"text": "a <|endoftext|> b"})]
    folder = tmp_path_factory.mktemp("files")
    for i in range(3):
        (folder / f"{i}.jsonl").write_text("\n".join(rows[i::3]) + "\n")
    return folder


def documents(folder, split):
    tokens = open_token_folder(folder).tokens(split)
    ids = tokens.read(0, len(tokens))
    return sorted(map(tuple, np.split(ids, np.flatnonzero(ids == 299)[:-1] + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("executor", [["--workers", "2"], ["--slurm", "cpu"]])
def test_what_datatrove_writes_is_what_prepare_writes(executor, environment, files, token_folder, run_config, tmp_path):
    out, tokenizer = tmp_path / "out", str(token_folder / "tokenizer")
    command = [
        "python", str(environments.ROOT / "examples/datatrove_tokens.py"), str(files), tokenizer, str(out),
        "--validation-share", "0.2", "--tasks", "3", *executor,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500
    )
    log = Path(environment["SLURM_LOG"])
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    ours = prepare(str(files), tmp_path / "ours", tokenizer=tokenizer, validation_share=0.2)
    for split in ("train", "val"):
        assert documents(out, split) == documents(ours, split)
    inspection = inspect_folder(out)
    assert inspection.problems == []
    assert inspection.splits["train"].files == 3
    assert os.path.basename(inspection.folder.manifest["tokenizer"]["name"]) == "tokenizer.json"
    config = run_config(data__dir=out, train__steps=3)
    assert loop.train(config) == 0
    assert loop.train(config, resume=True) == 0
