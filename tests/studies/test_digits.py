import numpy as np
import pytest
import torch
from PIL import Image

from harmonic_gpt.errors import InputError
from harmonic_gpt.studies import digits


def planted() -> digits.Images:
    """Class k is bright at pixels 2k and 2k + 1; pixels 20 to 23 are always off."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % digits.CLASSES
    images = torch.rand(400, 24, generator=generator) * 0.1
    images[torch.arange(400), 2 * labels] = 0.9
    images[torch.arange(400), 2 * labels + 1] = 0.9
    images[:, 20:] = 0
    return digits.Images("digits", images[:300], labels[:300], images[300:], labels[300:])


def test_closeness_of_planted_weights():
    images = planted()
    means = images.class_means()
    copies = torch.stack([means, 3 * means, means.flip(0)])
    correlation, distance = digits.correlation_with_means(copies, means), digits.distance_to_means(copies, means)
    np.testing.assert_allclose(correlation[:2], 1, atol=1e-6)  # a scaled copy looks the same ...
    np.testing.assert_allclose(distance[:2], [0, 2], atol=1e-6)  # ... and is far away
    assert correlation[2] < 0.1
    off = digits.off_pixel_size(torch.stack([means, torch.ones_like(means)]), images)
    np.testing.assert_allclose(off, [0, 1], atol=1e-6)


def test_centers_come_to_lie_on_the_class_means():
    images, head = planted(), digits.heads(24)["harmonic, n = 4.89898 (paper)"]
    before, after = (digits.train(images, head, seeds=2, epochs=epochs) for epochs in (0, 120))
    assert digits.accuracies(images, after, head).min() == 1
    distance = [digits.distance_to_means(w, images.class_means()) for w in (before, after)]
    assert (distance[1] < 0.6 * distance[0]).all()
    assert (digits.correlation_with_means(after, images.class_means()) > 0.7).all()


def test_seeds_train_as_if_alone():
    images, head = planted(), digits.heads(24)["standard"]
    together, alone = digits.train(images, head, seeds=3, epochs=3), digits.train(images, head, seeds=1, epochs=3)
    torch.testing.assert_close(together[0], alone[0])


def test_a_local_folder_of_images(tmp_path):
    for side, count in (("train", 3), ("test", 1)):
        for label in range(digits.CLASSES):
            folder = tmp_path / side / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (4, 4), color=25 * label).save(folder / f"{i}.png")
    images = digits.load(str(tmp_path))
    assert images.train.shape == (30, 16)
    assert images.test_labels.tolist() == list(range(10))
    torch.testing.assert_close(images.class_means()[:, 0], 25 * torch.arange(10) / 255)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="expected digits, mnist or a local folder"):
        digits.load("nowhere")
    with pytest.raises(InputError, match="columns image and label"):
        digits.load(str(tmp_path))
