"""`eval.py geometry`, `probes`, `perplexity`: from what is typed to what is printed and written."""

import json

import pytest

from harmonic_gpt.__main__ import main
from harmonic_gpt.cli.geometry import run_geometry
from harmonic_gpt.cli.probes import run_probes_command
from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.errors import InputError


@pytest.fixture
def model(loaded, tmp_path) -> str:
    """The tiny model in a folder."""
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def word_pairs(tmp_path) -> str:
    """Two tasks of words that are tokens of the tiny corpus; one has too few pairs."""
    words = ["cat", "dog", "bird", "house", "river", "tree", "sees", "likes", "finds", "leaves"]
    pairs = [{"input": a, "output": b} for a in words for b in words if a < b]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "made-up.json").write_text(json.dumps(pairs))
    (tmp_path / "pairs" / "too-few.json").write_text(json.dumps(pairs[:2]))
    return str(tmp_path / "pairs")


def test_probes_print_write_and_refuse(model, tmp_path, capsys):
    texts = tmp_path / "mine.csv"
    texts.write_text("text,label\n" + "".join(f"The {w} sees {i}.,{w}\n" for i in range(10) for w in ("cat", "dog")))
    out = tmp_path / "probes.json"
    rows = run_probes_command(model, [str(texts)], "0,2", 100, None, str(out), "cpu")
    assert [(row["task"], row["layer"]) for row in rows] == [("mine", 0), ("mine", 2)]
    assert json.loads(out.read_text()) == rows
    assert rows[0]["logistic"]["f1"] > 0.9
    assert "mine" in capsys.readouterr().out
    for layers, target, message in (
        ("a", None, "expected numbers"),
        ("0,9", None, "asked for"),
        ("0", str(out), "exists already"),
        ("0", str(tmp_path / "new" / "probes.json"), "there is no folder"),
    ):
        with pytest.raises(InputError, match=message):
            run_probes_command(model, [str(texts)], layers, 100, None, target, "cpu")


def test_geometry_fits_a_screen_and_full_prints_every_row(model, word_pairs, token_folder, tmp_path, capsys):
    arguments = {"word_pairs": word_pairs, "data": str(token_folder), "tokens": 3000}
    row = run_geometry(model, out=str(tmp_path / "geometry.json"), **arguments)
    assert json.loads((tmp_path / "geometry.json").read_text()) == row
    short = capsys.readouterr().out
    table = short[short.index("centers: strict protocol") : short.index("nearest to")].splitlines()
    assert max(map(len, table)) <= 100
    lines = {words[0]: line for line in table if (words := line.split())}
    task = next(r for r in row["matrices"]["centers"]["tasks"] if r["components"] == "without the first")
    assert f"{task['ratio']:.3f} [" in lines["made-up"]
    assert f"{task['offset_cosine']:.3f} [" in lines["made-up"]
    assert f" {task['used']} " in lines["made-up"]
    assert "too few pairs" in lines["too-few"]
    assert sum("made-up" in line for line in table) == 1
    assert "layer 2" in short
    run_geometry(model, full=True, **arguments)
    full = capsys.readouterr().out
    spaces = [(r["protocol"], r["components"]) for r in row["matrices"]["centers"]["tasks"] if r["task"] == "made-up"]
    in_layers = sum(r["task"] == "made-up" for place in row["layers"] for r in place.get("tasks", ()))
    assert sum("made-up" in line for line in full.splitlines()) == len(spaces) + in_layers == 5 + 6
    run_geometry(model, protocol="paper", **arguments)
    assert "paper's protocol" in capsys.readouterr().out
    with pytest.raises(InputError, match="expected paper, strict or both"):
        run_geometry(model, protocol="ours", **arguments)


@pytest.mark.parametrize("verify", [False, True])
def test_perplexity_verifies_the_split_anew_where_it_is_asked_to(model, token_folder, monkeypatch, capsys, verify):
    calls = []
    monkeypatch.setattr(TokenFolder, "verify", lambda _, split, anew=False: calls.append((split, anew)))
    arguments = ["eval", "perplexity", model, "--data", str(token_folder), "--tokens", "300"]
    with pytest.raises(SystemExit) as stop:
        main(arguments + ["--verify"] * verify)
    assert not stop.value.code
    assert ("val", True) in calls if verify else set(calls) == {("val", False)}
    assert "nats per token" in capsys.readouterr().out
