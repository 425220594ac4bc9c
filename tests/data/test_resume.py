"""A preparation that is killed, or that the system or its input stops, continues and ends with the same bytes.

The program below prepares in forked children and kills them for real: SIGKILL to themselves just before they put
something on the disk. It starts once, because loading torch and datasets takes seconds, and forking does not.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.errors import InputError

PROGRAM = r'''
import datasets, json, os, resource, shutil, signal, sys, traceback
from pathlib import Path

from harmonic_gpt.data import sources
from filelock import FileLock
from harmonic_gpt.data.prepare import LOCK, prepare
from harmonic_gpt.data.shards import ShardWriter
from harmonic_gpt.errors import InputError
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here, not in every child

sources.BATCH_DOCUMENTS = 4  # shards of a few batches
options = {}


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def attempt(out, kill_at=None, setup=None):
    """prepare in a child; (its exit status, number of times it put something on the disk, its error)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count, text = 0, ""

        def hook(original):
            def counted(*args, **kwargs):
                nonlocal count
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return counted

        for name in ("fsync", "rename", "replace", "unlink", "truncate"):
            setattr(os, name, hook(getattr(os, name)))
        status = 0
        try:
            if setup:
                setup()
            prepare([first, second], out, **options)
        except (InputError, OSError) as error:
            status, text = (2 if isinstance(error, InputError) else 4), str(error)
        os.write(write, json.dumps([count, text]).encode())
        os._exit(status)
    os.close(write)
    _, status = os.waitpid(child, 0)
    said = os.read(read, 65536)
    os.close(read)
    count, text = json.loads(said) if said else (None, "")
    return os.waitstatus_to_exitcode(status), count, text


def fresh(name):
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(folder / f"{name}.partial", ignore_errors=True)
    return folder / name


def run(path, body):
    global folder, first, second, result
    folder, result = Path(path), {}
    first, second = str(folder / "first"), str(folder / "second.jsonl")
    options.clear()
    options.update(vocab_size=300, validation_share=0.2, shard_tokens=800, num_workers=2)
    try:
        exec(body, globals())
    except BaseException:
        result["error"] = traceback.format_exc()
    print(json.dumps(result), flush=True)
'''


@pytest.fixture(scope="module")
def run():
    """run(folder, body): execute body in the program; what it put into `result`."""
    loop = PROGRAM + "\nfor line in sys.stdin:\n    run(*json.loads(line))\n"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as program:

        def ask(folder: Path, body: str) -> dict:
            program.stdin.write(json.dumps([str(folder), body]) + "\n")
            program.stdin.flush()
            answer = json.loads(program.stdout.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield ask
        program.stdin.close()


@pytest.fixture
def folder(tmp_path):
    """Two sources: a folder of three files, and one file; duplicates and empty documents among them."""
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["a", "few", "words", "to", "learn", "from", "é"], k=rng.randrange(5, 60)))
        for _ in range(240)
    ]
    texts[50] = texts[3]
    texts[200] = texts[5]
    texts[77] = ""
    (tmp_path / "first").mkdir()
    for i in range(3):
        (tmp_path / f"first/{i}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in texts[60 * i : 60 * i + 60])
        )
    (tmp_path / "second.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[180:]))
    return tmp_path


@pytest.mark.parametrize(
    ("every", "processes_from"),
    [(11, 10**9), pytest.param(1, 10**9, marks=pytest.mark.slow), pytest.param(13, 0, marks=pytest.mark.slow)],
)
def test_killed_anywhere_it_ends_with_the_same_bytes(run, folder, every, processes_from):
    """Killed before each write that reaches the disk, then continued; and killed again and again in one preparation;
    tokenizing in threads, and in processes."""
    result = run(
        folder,
        f"every, sys.modules['harmonic_gpt.data.prepare'].PROCESSES_FROM = {every}, {processes_from}"
        r"""
status, writes, text = attempt(fresh("whole"))
assert status == 0, text
expected = contents(folder / "whole")
result["shards"] = sum(name.endswith(".bin") for name in expected)
result["writes"] = writes
result["killed"], result["differ"], result["kept"] = 0, [], 0
result["tried"] = len(range(1, writes + 1, every))
for k in range(1, writes + 1, every):
    out = fresh("killed")
    status, _, _ = attempt(out, kill_at=k)
    result["killed"] += status == -9
    if not out.exists():  # the last writes are behind the renaming
        partial = out.with_name(out.name + ".partial")
        stored = partial / "progress.json"
        result["kept"] += stored.exists() and bool(json.loads(stored.read_text())["writers"]["train"]["finished"])
        status, again, text = attempt(out)
        assert status == 0, (k, text)
    if contents(out) != expected or (folder / "killed.partial").exists():
        result["differ"].append(k)

out, attempts = fresh("chain"), 0
while not out.exists():
    attempts += 1
    attempt(out, kill_at=25)  # enough for one shard and the start of the next
    assert attempts < 100
result["attempts"] = attempts
result["chain"] = contents(out) == expected
""",
    )
    assert result["shards"] >= 8
    assert result["writes"] > 60
    assert result["killed"] == result["tried"]
    assert result["kept"] > result["tried"] / 2  # it did continue, rather than begin anew
    assert result["differ"] == []
    assert result["chain"]
    assert result["attempts"] >= 3  # killed twice at least


def test_the_disk_fills_up(run, folder):
    """A limit on the size of files stands for the disk: the system refuses the same write calls, with another
    number."""
    result = run(
        folder,
        r"""
attempt(fresh("whole"))
expected = contents(folder / "whole")
partial = folder / "out.partial"


def later():  # so that some shards are finished first
    finish = ShardWriter.finish

    def finish_and_fill(self, source):
        finish(self, source)
        if len(self.finished) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    ShardWriter.finish = finish_and_fill


status, _, text = attempt(fresh("out"), setup=later)
result["status"], result["text"] = status, text
kept = {name: data for name, data in contents(partial).items() if name.startswith("train") and name.endswith(".bin")}
result["kept"] = len(kept)
result["intact"] = all(expected[name] == data for name, data in kept.items())
status, _, text = attempt(folder / "out")
result["continued"] = status == 0 and contents(folder / "out") == expected
""",
    )
    assert result["status"] == 4
    assert "File too large" in result["text"]
    assert "the same command continues" in result["text"]
    assert result["kept"] >= 2
    assert result["intact"]
    assert result["continued"]


def test_a_file_in_the_middle_cannot_be_read(run, folder):
    result = run(
        folder,
        r"""
attempt(fresh("whole"))
expected = contents(folder / "whole")
bad = Path(second)
good = bad.read_bytes()
stat = bad.stat()
bad.write_bytes(b"\x00" * len(good))  # of the same size: what an interrupted copy leaves
# A training of the tokenizer would meet it first
options["tokenizer"], options["vocab_size"] = str(folder / "whole/tokenizer"), None
status, _, result["text"] = attempt(fresh("out"))
result["status"] = status
left = contents(folder / "out.partial").items()
shards = {name: data for name, data in left if name.startswith("train") and name.endswith(".bin")}
result["shards"] = len(shards)
result["intact"] = all(expected[name] == data for name, data in shards.items())
bad.write_bytes(good)
status, _, text = attempt(folder / "out")
made = contents(folder / "out")
same = [made[name] == data for name, data in expected.items() if name.endswith(".bin")] if status == 0 else [False]
result["continued"] = all(same)
""",
    )
    assert result["status"] == 2
    assert "second.jsonl: cannot be read" in result["text"]
    assert "the same command continues" in result["text"]
    assert result["shards"] >= 2
    assert result["intact"]
    assert result["continued"]


def test_another_preparation_in_the_same_place_is_refused(run, folder):
    result = run(
        folder,
        r"""
attempt(fresh("out"), kill_at=40)
before = contents(folder / "out.partial")
options["validation_share"] = 0.3
result["share"] = attempt(folder / "out")
options["validation_share"] = 0.2
changed = Path(first) / "0.jsonl"
text = changed.read_text()
changed.write_text(text + json.dumps({"text": "one more"}) + "\n")
result["changed"] = attempt(folder / "out")
changed.write_text(text)
result["untouched"] = contents(folder / "out.partial") == before
with FileLock(folder / "out.partial" / LOCK):
    result["locked"] = attempt(folder / "out")
other = fresh("other")
(folder / "other.partial").mkdir()
(folder / "other.partial/thesis.tex").write_text("years of work")
result["strange"] = attempt(other)
result["thesis"] = (folder / "other.partial/thesis.tex").exists()
result["goes_on"] = attempt(folder / "out")[0]
""",
    )
    for key, message in {
        "share": "was begun otherwise (validation_share: 0.2 there, 0.3 now)",
        "changed": "0.jsonl changed since",
        "locked": "another process is preparing",
        "strange": "is not the work of this program (it holds 'thesis.tex')",
    }.items():
        status, _, text = result[key]
        assert (status, message in text) == (2, True), text
    assert result["untouched"]
    assert result["thesis"]
    assert result["goes_on"] == 0


@pytest.mark.parametrize("record", [{"steps": 3}, [], {"request": [], "seen": "many"}, 7])
def test_a_record_of_another_shape_is_named(tmp_path, record):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "progress.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"progress\.json is damaged; remove .*out\.partial to begin anew"):
        prepare("pydocs", tmp_path / "out")
    assert json.loads((partial / "progress.json").read_text()) == record
