"""Reading in a run's row: the measures of the package, of the model that was trained."""


def test_a_row_holds_how_the_trained_model_reads(train):
    row, _ = train({"read": True})
    found = row["reading"]
    assert set(found) >= {"lens_agreement", "tuned_lens", "label_distance", "own_center", "layers", "flags"}
    assert len(found["layers"]["agreement"]) == len(found["layers"]["tuned_kl"]) == 1
    assert found["lens_agreement"] is None  # one block: no layer between, and the row says so
    assert "no inner layer that differs from the last one" in found["flags"] or "hardly" in found["flags"][0]
    assert 0 < found["label_distance"] < 2
    assert set(row["uses"]) == {"calibration", "quantized", "early_exit", "exit_at_agreement", "new_token"}
    assert "reading" not in train({})[0]
