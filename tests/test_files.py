"""New folders: whole or not there."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import check_new_folder, new_folder


def test_a_new_folder_is_there_when_it_is_full(tmp_path):
    out, usual = tmp_path / "a/b/out", tmp_path / "usual"
    usual.mkdir()
    with new_folder(out) as folder:
        (folder / "file").touch()
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").exists()
    assert out.stat().st_mode == usual.stat().st_mode


def test_a_new_folder_is_not_left_half_full(tmp_path):
    (tmp_path / "empty").mkdir()

    def interrupted():
        with new_folder(check_new_folder(tmp_path / "empty")) as folder:
            (folder / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_what_holds_anything_is_no_new_folder(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="exists; name a new folder"):
            check_new_folder(out)
