"""Probe tasks: built in, and files that users bring."""

import json

import numpy as np
import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.tasks.probe_tasks import (
    built_in_tasks,
    file_tasks,
    frequency_band,
    load_probe_file,
    load_probe_files,
)


def test_built_in_tasks_need_no_download(loaded):
    counts = np.zeros(300, int)
    counts[:90] = np.arange(90, 0, -1)
    speech, sources, frequency = built_in_tasks(loaded.tokenizer, counts, 300)
    assert set(speech.labels) == {"noun", "verb", "adjective", "adverb"}
    assert np.unique(sources.labels, return_counts=True)[1].tolist() == [150, 150]
    assert sum(len(e) for e in sources.examples) < 300 * 129
    bands = {"common": set(), "middling": set(), "rare": set()}
    for [token], label in zip(frequency.examples, frequency.labels, strict=True):
        bands[label].add(token)
    assert bands == {"common": set(range(30)), "middling": set(range(30, 60)), "rare": set(range(60, 90))}
    assert len(built_in_tasks(loaded.tokenizer, None, 60)) == 2
    assert frequency_band(counts, 30).examples == frequency_band(counts, 30).examples


def test_files_in_the_formats_of_sst2_and_cola(tmp_path, loaded):
    sst2 = tmp_path / "sst2.tsv"
    sst2.write_text('sentence\tlabel\n"a fine film \t1\ndull\t0\n')
    assert load_probe_file(sst2) == (['"a fine film ', "dull"], ["1", "0"])
    cola = tmp_path / "cola.tsv"
    cola.write_text("gj04\t1\t\tOur friends won.\ngj04\t0\t*\tThey drank the pub.\n")
    assert load_probe_file(cola) == (["Our friends won.", "They drank the pub."], ["1", "0"])
    table = tmp_path / "mine.csv"
    table.write_text('text,label\n"one, two",x\nthree,y\n')
    assert load_probe_file(table) == (["one, two", "three"], ["x", "y"])
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"text": "one", "label": 0}\n\n{"text": "two", "label": 1}\n')
    assert load_probe_file(lines) == (["one", "two"], ["0", "1"])
    [task] = file_tasks([table], loaded.tokenizer, 1)
    assert (task.name, len(task.examples)) == ("mine", 1)
    for name, content, message in (
        ("a.txt", "x", "expected a .csv"),
        ("b.csv", "words,kind\na,b\n", "KeyError"),
        ("c.csv", "text,label\na,b,c\n", "expected columns"),
        ("d.jsonl", '{"text": "a"}\n', "expected columns"),
        ("e.csv", "text,label\n", "needs a text"),
        ("f.csv", "text,label\n ,1\n", "needs a text"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            load_probe_file(tmp_path / name)


def test_files_of_one_name_are_two_tasks(tmp_path):
    paths = [tmp_path / name for name in ("SST-2/dev.tsv", "CoLA/dev.tsv", "mood.csv")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"text{separator}label\n{path.parent.name}{separator}x\n")
    held = load_probe_files(paths)
    assert list(held) == ["SST-2/dev.tsv", "CoLA/dev.tsv", "mood"]
    assert held["CoLA/dev.tsv"] == (["CoLA"], ["x"])
    with pytest.raises(InputError, match=r"SST-2/dev\.tsv more than once"):
        load_probe_files([paths[0], str(paths[0])])


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b"])
def test_lines_end_at_newlines_alone(tmp_path, mark):
    for name, content in (
        ("a.jsonl", json.dumps({"text": f"a{mark}b", "label": "x"}, ensure_ascii=False) + "\n"),
        ("a.tsv", f"text\tlabel\r\na{mark}b\tx\r\n"),
        ("a.csv", f'text,label\n"a{mark}b",x\n'),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        assert load_probe_file(tmp_path / name) == ([f"a{mark}b"], ["x"])
