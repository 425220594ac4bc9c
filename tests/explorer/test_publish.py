"""An explorer as a Space."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.explorer.publish import push_space


def test_a_folder_becomes_a_static_space(hub, built, cli):
    folder = built[0]
    code, out, err = cli("push", folder, "--space", "ann/look")
    assert (code, err) == (0, "")
    assert "ann/look/commit/" in out
    assert hub.spaces == {"ann/look": "static"}
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files["ann/look"]["main"] == files
    assert b"sdk: static" in files["README.md"]


def test_another_folder_is_refused(hub, tmp_path):
    with pytest.raises(InputError, match=r"eval\.py explore"):
        push_space(tmp_path, "ann/look")
    assert hub.requests == []


@pytest.mark.parametrize(
    "options", [[], ["--repo", "ann/m", "--space", "ann/s"], ["--space", "ann/s", "--report", "r"]]
)
def test_a_model_or_a_space(cli, options):
    code, _, err = cli("push", "somewhere", *options)
    assert code == 2
    assert "--space" in err or "--report" in err
