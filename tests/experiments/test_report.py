"""The report: seeds side by side, heads in pairs of seeds, a line with its intervals."""

import math

import numpy as np
import pytest
import report


def row(**fields) -> dict:
    training = {"grad_norm_median": 0.4, "grad_norm_max": 1.2, "clipped_share": 0.0, "largest_rise": 0.1, "spikes": 0}
    start = {"question": "q", "size": "2x64", "head": "harmonic", "seed": 0, "set": {}, "trial": {}, "val_loss": 5.0}
    measured = {"measured": {}, "training": training, "center_norms": [[6, 1.5, 0.1]]}
    return start | measured | fields


def test_seeds_stand_side_by_side_best_setting_first():
    rows = [row(seed=seed, val_loss=5.0 + 0.1 * seed) for seed in (0, 1, 2)]
    rows.append(row(head="standard", set={"optim.lr": 0.5}, val_loss=4.5))
    lines = report.table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| lr 0.5 | 0 | 4.5000 |")
    assert lines[3].startswith("| base | 0,1,2 | 5.1000 +- 0.1000 |")


def test_equal_training_is_one_setting_under_old_names_and_new_ones():
    untied = {"model.tie_word_embeddings": False}
    today = row(set=untied | {"optim.optimizer": "muon", "optim.head_lr_scale": 2.0, "data.dir": "data/prose8k-16"})
    before = row(set=untied | {"data.dir": "/tmp/prose8k-16"}, trial={"head_lr": 2.0, "muon": 1.0})
    assert report.settings_of(today) == report.settings_of(before)
    # The trials did not decay what they took over from AdamW, and a trial's Muon could have a rate of its own
    decayed = before | {"set": before["set"] | {"optim.weight_decay": 0.1}}
    assert report.own_settings(decayed)[1] == before["trial"]
    assert report.own_settings(row(trial={"muon": 2.0}))[1] == {"muon": 2.0}
    assert before["trial"] == {"head_lr": 2.0, "muon": 1.0}  # the row itself stays as it was


def test_heads_are_compared_seed_by_seed():
    losses = {"harmonic": {0: 9.0, 1: 5.1, 2: 5.3, 3: 5.2}, "standard": {1: 5.0, 2: 5.3, 3: 5.1, 4: 1.0}}
    rows = [row(head=head, seed=seed, val_loss=loss) for head, seeds in losses.items() for seed, loss in seeds.items()]
    rows += [row(question="one seed")]
    # A setting with fewer seeds, however good, is not what is compared; another corpus is another comparison
    rows += [row(head="standard", seed=seed, set={"optim.lr": 1.0}, val_loss=1.0) for seed in (1, 2)]
    rows += [row(head=head, seed=3, set={"data.dir": "a/corpus-4"}, val_loss=2.0) for head in losses]
    line = report.arms_compared(rows).splitlines()[2:]
    # differences 0.1, 0, 0.1: mean 0.0667, standard error 0.0333, t of 0.975 with 2 degrees of freedom 4.303
    assert line == [
        "| q | 2x64 | 1,2,3 | harmonic | 5.2000 +- 0.1000 | 5.1333 +- 0.1528 | +0.0667 | [-0.0768, +0.2101] |"
    ]


def test_every_arm_is_compared_with_the_standard_head():
    rows = [
        row(arm=arm, seed=s, val_loss=v + s)
        for arm, v in {"r1": 2.0, "r4": 1.0, "standard": 0.5}.items()
        for s in (1, 2)
    ]
    rows += [row(arm="alone", seed=3), row(arm="r1", seed=4, val_loss=1.0)]
    pairs = report.paired(rows)
    assert pairs == {
        ("q", "2x64", "r1"): [(1, 3.0, 1.5), (2, 4.0, 2.5)],
        ("q", "2x64", "r4"): [(1, 2.0, 1.5), (2, 3.0, 2.5)],
    }
    assert report.interval(pairs["q", "2x64", "r1"]) == [1.5, 1.5]
    assert report.interval([(1, 3.0, 1.5)]) is None


def test_a_line_has_the_intervals_of_least_squares():
    x, y = np.log2([64, 64, 128, 128, 192, 192]), np.array([0.06, 0.08, 0.05, 0.05, 0.04, 0.05])
    line = report.line_at(x, y, math.log2(768))
    design = np.stack([np.ones(6), x], axis=1)
    beta, (rest,), *_ = np.linalg.lstsq(design, y)
    covariance = rest / 4 * np.linalg.inv(design.T @ design)
    for number, place in ((line.slope, np.array([0, 1])), (line.at, np.array([1, math.log2(768)]))):
        value, half = place @ beta, 2.7764451 * math.sqrt(place @ covariance @ place)  # t, 4 degrees of freedom
        assert number == pytest.approx((value, value - half, value + half))
