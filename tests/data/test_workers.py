"""Tokenizing in processes: the bytes are those of threads, and no process outlives its parent."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harmonic_gpt.data import prepare as prepare_module
from harmonic_gpt.data import sources
from harmonic_gpt.data.encoding import batch_encoder, encoder_spec
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.workers import EncoderProcess, Encoders
from tests.data.test_prepare import contents

# No `if __name__ == "__main__"`: a program that calls prepare from its top level is not run again by the processes
PROGRAM = """
import os, resource, signal, sys
import harmonic_gpt.data.prepare as module
from harmonic_gpt.__main__ import main
from harmonic_gpt.data import sources
from harmonic_gpt.data.workers import EncoderProcess

print("started", flush=True)
module.PROCESSES_FROM = 0
sources.BATCH_DOCUMENTS = 4
encode, batches = EncoderProcess.encode, 0

def counted(self, batch):
    global batches
    batches += 1
    if batches == 8:
        BODY
    return encode(self, batch)

EncoderProcess.encode = counted
main(sys.argv[1:])
"""


def run(corpus, folder, body="pass"):
    """The program on a corpus. It returns when nothing holds its pipes any more: no process of it is left."""
    script = folder / "program.py"
    script.write_text(PROGRAM.replace("BODY", body))
    return subprocess.run(
        [sys.executable, script, "prepare", "--source", corpus, "--out", folder / "out", "--vocab-size", "300",
         "--shard-tokens", "3000", "--num-workers", "2"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def expected(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_DOCUMENTS", 4)
    return contents(prepare(str(corpus), tmp_path / "expected", vocab_size=300, shard_tokens=3000))


def test_a_small_corpus_starts_no_process(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderProcess, "__init__", lambda *_: pytest.fail("started"))
    prepare(str(corpus), tmp_path / "out", vocab_size=300)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 30_000])
def test_the_files_are_those_of_threads(corpus, tmp_path, monkeypatch, expected, start):
    """Started at once, and amid the corpus."""
    monkeypatch.setattr(prepare_module, "PROCESSES_FROM", start)
    out = prepare(str(corpus), tmp_path / "out", vocab_size=300, shard_tokens=3000, num_workers=3)
    assert contents(out) == expected


@pytest.mark.slow
def test_texts_of_every_kind_pass_the_pipe(token_folder):
    spec = encoder_spec(load_tokenizer(token_folder / "tokenizer"))
    batch = {"train": ["", "\x00", "漢字 😀", "\x1e \x1f", "x" * 3_000_000], "val": []}
    here = batch_encoder(spec, np.dtype("<u2"))(batch)
    with Encoders(spec, np.dtype("<u2"), 1, processes_from=0) as encoders:
        there = encoders.submit(batch).result()
    assert np.array_equal(here["train"][0], there["train"][0])
    assert (here["train"][1:], here["val"][1:]) == (there["train"][1:], there["val"][1:])
    assert there["val"][0].dtype == there["train"][0].dtype == np.dtype("<u2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("self._process.kill()", 4, "a process that tokenizes ended with exit code -9 (finished shards are in"),
    ],
)
def test_stopped_it_leaves_no_process_and_continues(corpus, tmp_path, expected, body, code, says):
    done = run(corpus, tmp_path, body)
    assert (done.returncode, done.stdout) == (code, "started\n"), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    done = run(corpus, tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == expected


MEMORY = """
import sys
from harmonic_gpt.data.prepare import prepare

source, out, tokenizer = sys.argv[1:]
prepare(source, out, tokenizer=tokenizer, num_workers=1)
# resource.getrusage would have the peak of the parent too
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_line_of_forty_megabytes_takes_the_memory_of_one_of_eight(token_folder, tmp_path):
    """The form of text8."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(1, 10))) for _ in range(5000)]
    peaks = []
    for megabytes in (8, 40):
        text = " ".join(rng.choices(words, k=megabytes * 180_000))
        out = tmp_path / str(megabytes)
        (tmp_path / "line.txt").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, tmp_path / "line.txt", out, token_folder / "tokenizer"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout) / 1024)
        assert "line 1 is longer than 1,048,576 characters: cut at white space" in done.stderr
        manifest = json.loads((out / "manifest.json").read_text())
        assert sum(split["text_bytes"] for split in manifest["splits"].values()) == len(text)
    assert len(text) > 38e6
    assert peaks[1] - peaks[0] < 20, peaks
