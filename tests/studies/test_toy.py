import torch

from harmonic_gpt.studies import toy

POINTS = toy.POINTS["two points"]


def test_harmonic_falls_faster_and_its_norm_settles():
    curves = {name: toy.train(POINTS, head, seeds=2, steps=800) for name, head in toy.HEADS.items()}
    harmonic, standard = curves[toy.CODE], curves["cross-entropy"]
    assert (harmonic[0][-1] < standard[0][-1] / 10).all()
    growth = {name: norms[-1] / norms[len(norms) // 2] for name, (_, norms) in curves.items()}
    assert (growth[toy.CODE] < growth["cross-entropy"]).all()


def test_cross_entropy_cannot_separate_the_middle_of_five_points():
    losses, _ = toy.train(toy.POINTS["five points"], toy.HEADS["cross-entropy"], seeds=2, steps=800)
    assert (losses[-1] > 0.3).all()  # log(5) / 5


def test_seeds_train_as_if_alone():
    head = toy.HEADS[toy.CODE]
    together, alone = toy.train(POINTS, head, seeds=3, steps=50), toy.train(POINTS, head, seeds=1, steps=50)
    torch.testing.assert_close(together[0][:, 0], alone[0][:, 0])
