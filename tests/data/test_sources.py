"""Where documents come from."""

import gzip
import json
import random
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from harmonic_gpt.data import sources
from harmonic_gpt.data.sources import documents, open_source
from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import load_run_config

TEXTS = [f"Document {i}.\n\nWith two paragraphs, é and 漢字." for i in range(30)]


def test_every_local_format_gives_the_same_documents(tmp_path):
    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    pq.write_table(pa.table({"number": range(30), "text": TEXTS}), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "*.parquet"):
        assert list(documents(str(tmp_path / name))) == TEXTS, name
    assert list(documents(str(tmp_path))) == TEXTS * 4
    assert open_source(str(tmp_path / "d.parquet")).rows == 30


def test_columns_that_are_not_asked_for_may_hold_what_they_like(tmp_path):
    """Over more rows than a reader would guess types from."""
    late = [{"score": 1}, {"score": 1.5}, {"id": "a", "text": "x"}, {"meta": {"more": [1]}}]
    rows = [{"text": "2024-01-01", "score": 1, "id": 1, "meta": {}}] * 3000 + [
        {"text": "2024-01-02"} | row for row in late
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(documents(str(tmp_path / "a.jsonl"))) == [row["text"] for row in rows]


def test_a_list_of_objects_and_rows_without_text(tmp_path):
    rows = [{"text": "a"}, {"text": None}, {"title": "b"}, {"text": "\ud800c"}]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.jsonl").write_text("\n" + "\n\n".join(map(json.dumps, rows)))
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    for name in ("list.json", "lines.jsonl"):
        assert list(documents(str(tmp_path / name))) == ["a", "", "", "?c"]
    assert list(documents(str(tmp_path / "null.parquet"))) == ["a", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": 5}\n', "line 2: column 'text' holds int, expected text"),
        ('{"text": "a"}\nplain\n', "line 2 is no JSON"),
        ('{"body": "a"}\n', "no column 'text'; it has 'body'"),
        ('"a"\n', "line 1: expected an object with a column 'text', got str"),
        ("[5]", "entry 1: expected an object"),
    ],
)
def test_the_row_that_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        list(documents(str(tmp_path / "a.jsonl")))


def test_all_frames_of_a_file_are_read(tmp_path):
    """As tools that compress in parallel write them."""
    lines = [json.dumps({"text": f"{i} {'x' * 300_000}"}) + "\n" for i in range(4)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(line.encode()) for line in lines))
    assert [text.partition(" ")[0] for text in documents(str(tmp_path / "a.jsonl.zst"))] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_txt_files_are_documents(tmp_path, suffix):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02}.txt{suffix}").write_bytes(pack(text.encode()))
    assert list(documents(str(tmp_path))) == TEXTS
    assert list(documents(str(tmp_path / f"*.txt{suffix}"))) == TEXTS


def test_options_of_a_source(tmp_path):
    (tmp_path / "a,b.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    source = open_source(f"{tmp_path / 'a,b.jsonl'},column=body,name=letters")
    assert (source.name, list(source.read(0))) == ("letters", ["x"])
    assert open_source("pydocs").name == "pydocs"
    with pytest.raises(InputError, match="config= is for datasets on the Hub"):
        open_source("pydocs,config=x")
    with pytest.raises(InputError, match="a source's name is letters"):
        open_source("pydocs,name=a/b")


def test_batches_depend_on_the_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(sources, "BATCH_CHARACTERS", 50)
    texts = ["x" * 60, *("y" * 20 for _ in range(5)), *("z" for _ in range(9))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "b.jsonl").write_text("")
    source = open_source(str(tmp_path))
    assert [len(batch) for batch in source.batches(0)] == [1, 3, 4, 4, 3]
    assert list(source.batches(1)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9000, mtime=0)[:-20]),
        ("a.jsonl.zst", zstandard.compress(b'{"text": "a"}\n' * 9000)[:-20]),
        ("a.txt.gz", gzip.compress(b"a line\n" * 9000, mtime=0)[:-20]),
        ("a.txt.zst", zstandard.compress(b"a line\n" * 9000)[:-9]),
        ("a.txt.zst", b"not zstandard"),
        ("a.txt", b"\xff\xfe"),
        ("a.parquet", b"PAR1 and no more"),
        ("a.jsonl", b'{"text": '),
        ("a.md", b"text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path / name)):
        list(documents(str(tmp_path / name)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset of the Hub, but for the Hub: a folder of parquet shards with OpenWebText's schema that `datasets` opens
    by its path."""
    folder = tmp_path / "hub"
    (folder / "plain_text").mkdir(parents=True)
    for i in range(3):
        pq.write_table(
            pa.table({"text": TEXTS[10 * i : 10 * i + 10]}), folder / "plain_text" / f"train-{i:05}-of-00003.parquet"
        )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n  - split: train\n    path: plain_text/train-*\n"
        "dataset_info:\n  config_name: plain_text\n  features:\n  - name: text\n    dtype: string\n"
        "  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 30\n---\n"
    )
    monkeypatch.setitem(sources.HUB_ALIASES, "openwebtext", str(folder))
    return folder


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset_is_streamed_file_by_file():
    source = open_source("openwebtext")
    assert (source.name, source.rows, len(source.parts)) == ("openwebtext", 30, 3)
    assert [list(source.read(part)) for part in (2, 0, 1)] == [TEXTS[20:], TEXTS[:10], TEXTS[10:20]]
    assert source.provenance["config"] == "plain_text"
    assert list(documents("openwebtext,config=plain_text,split=train")) == TEXTS
    with pytest.raises(InputError, match="Bad split: test"):
        open_source("openwebtext,split=test")
    with pytest.raises(InputError, match="no column 'body'; it has 'text'"):
        list(documents("openwebtext", "body"))


@pytest.mark.parametrize("head", ["harmonic", "standard"])
def test_the_babylm_configs_name_a_split_and_a_column_of_text_files(head, tmp_path, monkeypatch):
    """As the dataset is on the Hub: files of lines, NAME.train.txt."""
    for name in ("bnc_spoken", "childes"):
        (tmp_path / f"{name}.train.txt").write_text(f"a line of {name}\nanother\n")
    config = load_run_config(Path(__file__).parents[2] / "configs" / f"babylm_small_{head}.yaml")
    assert isinstance(config.data.source, str)
    monkeypatch.setitem(sources.HUB_ALIASES, config.data.source.split(",")[0], str(tmp_path))
    assert list(documents(config.data.source)) == ["a line of bnc_spoken", "another", "a line of childes", "another"]


@pytest.mark.usefixtures("hub")
def test_a_dataset_that_is_a_script_is_read_from_its_parquet_copy(monkeypatch):
    asked = []
    load = datasets.load_dataset_builder

    def script_on_main(path, name=None, revision=None):
        asked.append(revision)
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found openwebtext.py")
        return load(path, name=name)

    monkeypatch.setattr(datasets, "load_dataset_builder", script_on_main)
    assert list(documents("openwebtext")) == TEXTS
    assert asked == [None, "refs/convert/parquet"]


def test_an_unreachable_hub_names_the_offline_alternatives():
    message = r"cannot read 'Skylion007/openwebtext' from the Hugging Face Hub.*source pydocs"
    with pytest.raises(InputError, match=message) as caught:
        open_source("openwebtext")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 7 GiB"), pa.lib.ArrowMemoryError("malloc failed")])
def test_out_of_memory_while_reading_is_no_unreadable_file(tmp_path, monkeypatch, error):
    def fail(*_args):
        raise error

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(sources, "open_text", fail)
    with pytest.raises(MemoryError) as caught:
        list(documents(str(tmp_path / "a.txt")))
    assert caught.value is error


def test_a_long_txt_is_cut_where_paragraphs_end(tmp_path):
    rng = random.Random(0)
    text = "".join("word " * rng.randrange(5, 60) + "\n" + "\n" * (rng.random() < 0.2) for _ in range(2000))
    (tmp_path / "long.txt").write_text(text)
    pieces = list(documents(str(tmp_path / "long.txt")))
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])


@pytest.fixture
def short(monkeypatch):
    """Documents of 10 to 20 characters, and lines that are cut from 100 on."""
    monkeypatch.setattr(sources, "TXT_PIECE", 10)
    monkeypatch.setattr(sources, "MAX_LINE", 100)
    sources._say_once.cache_clear()


@pytest.mark.usefixtures("short")
def test_a_very_long_line_is_cut_at_white_space(tmp_path, capsys):
    rng = random.Random(0)
    line = "".join(rng.choice("abcd漢") * rng.randrange(1, 9) + rng.choice(" \t\xa0") for _ in range(400))
    for name, text in {"end": line, "newline": f"{line}\n", "amid": f"one\n\ntwo\n{line}\n{'last ' * 5}\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
        pieces = list(documents(str(tmp_path / f"{name}.txt")))
        assert "".join(pieces) == text
        assert all(10 <= len(piece) <= 20 for piece in pieces[1:-2])
        assert all(piece[-1].isspace() and not any(c.isspace() for c in piece[9:-1]) for piece in pieces[1:-2])
    number = 4
    assert f"amid.txt: line {number} is longer than 100 characters" in capsys.readouterr().err
    assert open_source(str(tmp_path)).provenance["txt_documents"].endswith("at white space")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "text",
    [
        "x" * 1000,
        "x" * 1000 + "\n",
        "x" * 100,
        "x" * 101,
        "x" * 100 + "\n",
        "x" * 99 + " ",
        "xy " * 67 + "\nnext",
        "é" * 140 + "\n\nb",
    ],
)
def test_no_character_of_a_long_line_is_lost(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    pieces = list(documents(str(tmp_path / "a.txt")))
    assert "".join(pieces) == text
    assert len(pieces) == 1 or all(len(piece) <= 20 for piece in pieces)


def test_lines_below_the_limit_are_not_cut(tmp_path):
    """They were whole before there was a limit: their folders' bytes stay."""
    lines = ["word " * 20_000 + "\n", "x" * (sources.MAX_LINE - 1) + "\n", "y" * sources.MAX_LINE]
    (tmp_path / "a.txt").write_text("".join(lines))
    assert list(documents(str(tmp_path / "a.txt"))) == lines


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (
            b"\xff\xfeh\x00",
            "byte 0xff at line 1, byte 1 of the line, offset 0 in the file (invalid start byte); it looks",
        ),
        (b"one\ntwo \xc3\xa9 \xe9 x", "byte 0xe9 at line 2, byte 8 of the line, offset 11 in the file (invalid cont"),
        (
            b"a" * 2**20 + b"\n" + "é".encode() * 2**19 + b"\xc3",
            "line 2, byte 1,048,577 of the line, offset 2,097,153 ",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl"])
def test_what_is_not_utf8_is_located(tmp_path, data, place, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(InputError, match=re.escape(f"{path}: expected UTF-8 text, got ") + ".*" + re.escape(place)):
        list(documents(str(path)))


@pytest.mark.parametrize("name", ["a.TXT", "a.Txt.GZ", "a.JSONL", "a.JsonL.gz"])
def test_suffixes_of_any_case_and_a_byte_order_mark(tmp_path, name):
    text = "one\n" if "t" in name.lower()[2:4] else json.dumps({"text": "one\n"}) + "\n"
    data = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert list(documents(str(tmp_path / name))) == ["one\n"]
    assert list(documents(str(tmp_path))) == ["one\n"]


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path, capsys):
    folder = tmp_path / ".cache" / "corpus"  # hidden above the place that was named is no matter
    for name in ("a.txt", ".b.txt", ".git/c.txt", "d/.e/f.txt", ".g.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    source = open_source(str(folder))
    assert [Path(part).name for part, _ in source.parts] == ["a.txt"]
    assert source.provenance["hidden_files_left_out"] == 3
    assert "3 hidden files are left out" in capsys.readouterr().err
    assert list(documents(str(folder / ".b.txt"))) == [".b.txt"]
    (folder / "a.txt").unlink()
    with pytest.raises(InputError, match="but for 3 hidden ones"):
        open_source(str(folder))


def test_pydocs_are_english_prose():
    stream = documents("pydocs")
    first = [next(stream) for _ in range(20)]
    assert all(len(text) > 100 for text in first)
    assert "assert" in first[0]
