"""What the page shows is what the other commands print, and what it leaves out is said."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import score_name, spec_of
from harmonic_gpt.evaluation.lens import lens
from harmonic_gpt.evaluation.measures.neighbors import NEAREST, neighbors
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.explorer.build import explore
from harmonic_gpt.explorer.centers import CenterMap, map_centers, nearest_centers
from harmonic_gpt.explorer.format import SCHEMA_VERSION, packed, write_data
from harmonic_gpt.explorer.reading import LENS_TOP, read_text, shown_layers
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.model.heads import HEADS
from tests.explorer.written import read_data, unpacked

PAGE = Path(__file__).parents[2] / "harmonic_gpt/explorer/page"


def test_arrays_come_back(tmp_path):
    value = {
        "a": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "b": [np.array([np.nan, 1], np.float32)],
        "c": "</x>\u2028",
    }
    write_data(tmp_path, "some", value)
    back = read_data(tmp_path, "some")
    assert unpacked(back["a"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.isnan(unpacked(back["b"][0])[0])
    assert back["c"] == value["c"]
    with pytest.raises(ValueError, match="float64"):
        packed(np.zeros(2))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_data(tmp_path, "bad", {"x": float("nan")})


def test_the_page_reads_the_schema_that_is_written():
    script = (PAGE / "core.js").read_text()
    assert re.search(r"const SCHEMA_VERSION = (\d+);", script)[1] == str(SCHEMA_VERSION)
    scripts = re.findall(r'<script src="([^"]+)">', (PAGE / "index.html").read_text())
    assert {path.name for path in PAGE.glob("*.js")} == set(scripts)
    for path in PAGE.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text()), path


def test_numbers_are_those_of_the_other_commands(built):
    folder, explored = built
    manifest = read_data(folder, "manifest")
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["texts"][0]["source"] == "note.txt"
    for number, listed in enumerate(manifest["texts"], 1):
        text = read_data(folder, f"text-{number}")
        ids = unpacked(text["ids"])
        for m, loaded in enumerate(explored.models):
            values = text["models"][m]
            scored = perplexity(loaded.model, ids.astype(np.int64), window=len(ids))
            assert float(unpacked(values["nats"]).mean()) == pytest.approx(scored.nats_per_token, rel=1e-5)
            assert listed["nats"][m] == pytest.approx(scored.nats_per_token, rel=1e-5)
            prompt = loaded.tokenizer.decode(ids.tolist())
            if loaded.tokenizer(prompt).input_ids != ids.tolist():
                continue  # a passage that begins within a word is tokenized otherwise when it stands alone
            read = lens(loaded, prompt, LENS_TOP)
            walk = values["walk"]
            assert manifest["models"][m]["score"] == read.by
            assert (unpacked(walk["top"]) == read.nearest).mean() > 0.999  # a tie may be broken otherwise
            np.testing.assert_allclose(unpacked(walk["top_score"]), read.scores, rtol=1e-4, atol=1e-4)
    gaps = [text["mean_gap"] for text in manifest["texts"][1:]]
    assert gaps == sorted(gaps, reverse=True)
    assert "3 of 6 evenly spaced" in manifest["selection"]


def test_neighbors_frequencies_and_words(built, token_folder):
    folder, explored = built
    vocabulary = read_data(folder, "vocabulary-a")
    counts = token_counts(open_token_folder(token_folder))
    assert unpacked(vocabulary["counts"]).tolist() == counts.tolist()
    for key, loaded in zip("ab", explored.models, strict=True):
        table = read_data(folder, f"map-{key}")
        nearest, scores = unpacked(table["nearest"]), unpacked(table["scores"])
        words = ["cat", "river"]
        told = neighbors(loaded, words)
        for row in told["words"]:
            token = vocabulary["tokens"].index(f" {row['word']}")
            texts = [vocabulary["tokens"][i] for i in nearest[token][:NEAREST]]
            # eval prints a byte that is a part of a character as �
            assert [text for text in texts if "\\x" not in text] == [text for text in row["nearest"] if text != "�"]
            np.testing.assert_allclose(scores[token][:NEAREST], row["scores"], rtol=1e-4)


@pytest.mark.parametrize("head", [*HEADS, "gpt2"])
def test_a_prediction_is_the_models_own(head, tiny_config):
    if head == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=2, n_positions=24))
    else:
        model = HarmonicGPT2ForCausalLM(tiny_config(head=head, n_layer=12 if head == "harmonic" else 2))
    model.eval()
    ids = torch.randint(0, 101, (20,))
    centers = map_centers(model, None, lambda _: None)
    layers = shown_layers(model)
    prediction, walk = read_text(model, ids.numpy(), layers, centers)
    with torch.no_grad():
        log_p = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    truth = log_p[torch.arange(19), ids[1:]]
    np.testing.assert_allclose(prediction.nats, -truth, atol=1e-5)
    np.testing.assert_allclose(prediction.top_p, log_p.exp().topk(10).values, atol=1e-6)
    assert prediction.label_rank.tolist() == [(row > p).sum().item() + 1 for row, p in zip(log_p, truth, strict=False)]
    assert (prediction.top == log_p.topk(10).indices.numpy()).mean() > 0.99
    assert layers[0] == 0
    assert layers[-1] == model.config.num_hidden_layers
    assert len(layers) <= 9
    spec = spec_of(model)
    if score_name(model) in ("distance", "own distance") and spec.exponent is not None:  # p is a power of it
        apart = np.log(prediction.top_p[:, :1] / prediction.top_p)
        expected = spec.exponent * np.log(prediction.top_score / prediction.top_score[:, :1])
        np.testing.assert_allclose(apart, expected, rtol=1e-3, atol=1e-3)
    elif score_name(model) == "dot product" and head in ("standard", "gpt2"):
        apart = np.log(prediction.top_p[:, :1] / prediction.top_p)
        np.testing.assert_allclose(apart, prediction.top_score[:, :1] - prediction.top_score, rtol=1e-3, atol=1e-4)
    # The last layer of the walk is the output
    assert walk.top[-1].tolist() == prediction.top[:, :LENS_TOP].tolist()
    np.testing.assert_allclose(walk.label_p[-1], truth.exp(), rtol=1e-5)
    np.testing.assert_allclose(walk.label_score[-1], prediction.label_score)
    assert (walk.agreement[-1] == 1).all()
    assert (walk.agreement >= 0).all()
    assert (walk.agreement <= 1 + 1e-5).all()
    assert (walk.agreement[0] < 1 - 1e-6).all()


def test_states_lie_where_centers_do(built):
    """A state that is a center is drawn at that center's place."""
    _, explored = built
    for loaded, centers in zip(explored.models, explored.maps, strict=True):
        rows = loaded.model.lm_head.weight.detach()[5:8]
        places = centers.place(rows / centers.state_scale, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
        np.testing.assert_allclose(places["pca"], centers.coordinates["pca"][5:8], rtol=1e-4, atol=1e-4)


def test_nearest_of_twins():
    """A token is left out of its own list even where another has the same center."""
    points = torch.tensor([[0.0, 0], [0, 0], [0, 0], [1, 0], [3, 0]])
    ids, distances = nearest_centers(points, "distance", 2, lambda _: None)
    for token, row in enumerate(ids):
        assert token not in row
    assert distances[0].tolist() == [0, 0]
    assert ids[4].tolist()[0] == 3


@pytest.mark.slow
def test_umap_keeps_more_neighbors_than_pca_and_is_the_same_each_time():
    pytest.importorskip("umap")
    from harmonic_gpt.explorer.centers import add_umap, count_kept

    model = torch.nn.Module()
    groups = torch.randn(12, 16).repeat_interleave(12, 0) * 3 + torch.randn(144, 16) * 0.4
    model.get_output_embeddings = lambda: type("Head", (), {"weight": groups})

    def made() -> CenterMap:
        centers = map_centers(model, None, lambda _: None)
        add_umap(centers, model, None)
        count_kept(centers)
        return centers

    first, again = made(), made()
    assert first.kept["umap"] > first.kept["pca"] > 0.1
    assert (first.coordinates["umap"] == again.coordinates["umap"]).all()


def test_a_long_text_is_cut_and_says_so(built):
    manifest = read_data(built[0], "manifest")
    assert "only the first 64" in manifest["texts"][0]["note"]
    assert manifest["texts"][0]["tokens"] == 64


@pytest.fixture
def small(pair, tmp_path):
    """A function that makes an explorer without texts, of other models if given, and returns its manifest."""

    def make(*models, **options):
        explore([str(m) for m in models or pair], tmp_path / "out", device="cpu", umap=False, **options)
        return read_data(tmp_path / "out", "manifest")

    return make


def test_without_data_there_are_maps_alone(small):
    manifest = small()
    assert manifest["texts"] == []
    assert "was trained on is not there" in manifest["texts_missing"]
    assert any("Frequencies" in line for line in manifest["left_out"])


def test_different_tokenizers_share_no_text(small, pair, save_model, corpus, token_folder, tmp_path):
    other = save_model("other-standard", similarity="dot", normalization="softmax")
    tokenizer = prepare(str(corpus), tmp_path / "tokens", vocab_size=290, validation_share=0.2) / "tokenizer"
    load_tokenizer(tokenizer).save_pretrained(other)
    manifest = small(pair[0], other, data=str(token_folder))
    assert "different tokenizers" in manifest["texts_missing"]
    assert manifest["vocabularies"] == ["vocabulary-a", "vocabulary-b"]
    with pytest.raises(InputError, match="different tokenizers"):
        small(pair[0], other, data=str(token_folder), files=[__file__])


def test_no_tokenizer(small, pair, save_model):
    bare = save_model("bare", tokenizer=False)
    manifest = small(pair[0], bare)
    assert "bare came without a tokenizer" in manifest["texts_missing"]


def test_a_model_without_a_known_norm_has_no_lens(small, token_folder, monkeypatch):
    def no_norm(_model):
        raise InputError("no final norm under a known name")

    monkeypatch.setattr("harmonic_gpt.explorer.reading.final_norm", no_norm)
    manifest = small(data=str(token_folder), texts=1, length=20)
    assert [model["layers"] for model in manifest["models"]] == [None, None]
    assert any(line.startswith("Lens and walk of blue-harmonic") for line in manifest["left_out"])
    assert len(manifest["texts"]) == 1


def test_an_existing_folder(pair, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    with pytest.raises(InputError, match="not an earlier explorer"):
        explore([str(m) for m in pair], tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "keep"


def test_what_lies_beside_an_explorer_is_not_deleted(small, tmp_path):
    """As in a clone of a Space."""
    small()
    (tmp_path / "out" / ".git").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match=r"holds \.git, notes\.txt, which no explorer has"):
        small()
    assert (tmp_path / "out" / "notes.txt").read_text() == "keep"


def test_the_page_shows_no_path(small, tmp_path):
    small()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


def test_a_folder_of_its_own_is_replaced(small, tmp_path):
    small()
    (tmp_path / "out" / "data" / "text-99.js").write_text("of an earlier time")
    small()
    assert not (tmp_path / "out" / "data" / "text-99.js").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["nowhere.txt"]}, "nowhere.txt"),
        ({"report": "nowhere"}, "nowhere"),
        ({"data": "nowhere"}, "nowhere"),
        ({"word_pairs": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_leave_nothing(small, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        small(**options)
    assert not list(tmp_path.iterdir())


def test_two_models_that_are_two(small, pair):
    with pytest.raises(InputError, match="named twice"):
        small(pair[0], pair[0])
    with pytest.raises(InputError, match="two models, got 3"):
        small(*pair, pair[0])


def test_command(cli, pair, token_folder, tmp_path):
    out = tmp_path / "page"
    code, text, err = cli("eval", "explore", *pair, "--data", token_folder, "--texts", 1, "--no-umap", "--out", out)
    assert (code, err) == (0, "")
    assert f"open {out / 'index.html'}" in text
    assert read_data(out, "serve") is None
    assert cli("eval", "explore", *pair)[0] == 2
