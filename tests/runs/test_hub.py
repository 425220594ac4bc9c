import hashlib
import os
import traceback

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.runs.hub import upload_checkpoint
from tests.hub_stand_in import SIGNATURE, TOKEN


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "step-000004"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_main_is_published_in_one_commit(hub, folder):
    address = upload_checkpoint(folder, "ann/model", revision="main", private=False)
    assert address.startswith(f"{hub.url}/ann/model/commit/")
    assert hub.files["ann/model"] == {"main": contents(folder)}
    assert hub.private["ann/model"] is False
    assert sum("/commit/" in request for request in hub.requests) == 1


def test_hidden_files_stay_here(hub, folder):
    """As a download and a clone of a repository have them."""
    public = contents(folder)
    for name in (".cache/huggingface/download.lock", ".git/config", ".env"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    upload_checkpoint(folder, "ann/model", revision="main", private=False)
    assert hub.files["ann/model"]["main"] == public | {".gitattributes": b"*.safetensors filter=lfs"}


def test_a_revision_leaves_main_alone_and_can_be_uploaded_again(hub, folder):
    upload_checkpoint(folder, "ann/model", revision="step-000004")
    upload_checkpoint(folder, "ann/model", revision="step-000004")
    assert hub.files["ann/model"] == {"main": {}, "step-000004": contents(folder)}
    assert hub.private["ann/model"] is True
    assert sum(request.startswith("PUT /uploads/") for request in hub.requests) == 1


def test_the_xet_protocol_is_used_where_its_client_is_installed(hub, folder, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    weights = os.urandom(300_000)
    (folder / "model.safetensors").write_bytes(weights)
    upload_checkpoint(folder, "ann/model", revision="main")
    assert hub.xorb_bytes >= len(weights)
    assert hub.files["ann/model"]["main"]["model.safetensors"] == hashlib.sha256(weights).hexdigest().encode()


@pytest.mark.parametrize("part", ["/xet-write-token/", "/v1/xorbs/"])
def test_a_refusal_within_the_xet_protocol_publishes_nothing(hub, folder, monkeypatch, part):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.fail(part, 403)
    with pytest.raises(ConnectionError, match="nothing was published"):
        upload_checkpoint(folder, "ann/model", revision="main")
    assert hub.files["ann/model"]["main"] == {}


def test_private_is_never_put_into_a_public_repository(hub, folder):
    hub.files["ann/open"], hub.private["ann/open"] = {"main": {}}, False
    with pytest.raises(InputError, match="ann/open is public"):
        upload_checkpoint(folder, "ann/open", revision="main")
    assert hub.files["ann/open"] == {"main": {}}


@pytest.mark.parametrize(
    ("part", "status", "kind", "says"),
    [
        ("/api/repos/create", 401, InputError, "HF_TOKEN"),
        ("/api/repos/create", 403, InputError, "write access"),
        ("/preupload/", 404, InputError, "no such repository"),
        ("/api/repos/create", 503, ConnectionError, "503"),
        ("/uploads/", 500, ConnectionError, "500"),
        ("/uploads/", 0, ConnectionError, "cut short"),
        ("/info/lfs/", 502, ConnectionError, "502"),
        ("/preupload/", 0, ConnectionError, "cut short"),
    ],
)
def test_failures_before_the_commit_publish_nothing_and_say_so(hub, folder, part, status, kind, says):
    hub.fail(part, status)
    with pytest.raises(kind, match=says) as caught:
        upload_checkpoint(folder, "ann/model", revision="main")
    assert "nothing was published" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not hub.files.get("ann/model", {}).get("main")


def test_a_lost_answer_to_the_commit_is_not_called_a_failure(hub, folder):
    hub.commit_then_drop = True
    with pytest.raises(ConnectionError, match=r"not known: look at .*/ann/model/commits/main"):
        upload_checkpoint(folder, "ann/model", revision="main")
    assert hub.files["ann/model"]["main"] == contents(folder)


def test_an_interrupted_upload_continues(hub, folder):
    hub.fail("/commit/", 500)
    with pytest.raises(ConnectionError, match="500"):
        upload_checkpoint(folder, "ann/model", revision="main")
    hub.failures.clear()
    upload_checkpoint(folder, "ann/model", revision="main")
    assert hub.files["ann/model"]["main"] == contents(folder)
    assert sum(request.startswith("PUT /uploads/") for request in hub.requests) == 1


@pytest.mark.usefixtures("hub")
def test_a_wrong_token_is_refused_and_not_shown(folder, monkeypatch, capfd, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_another0secret")
    with pytest.raises(InputError, match="401") as caught:
        upload_checkpoint(folder, "ann/model", revision="main")
    seen = capfd.readouterr()
    shown = "".join(traceback.format_exception(caught.value))
    assert "another0secret" not in shown + seen.out + seen.err + caplog.text


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 500), ("hf_a\nnew0line", None)])
def test_a_traceback_has_the_cause_and_no_secret(hub, folder, monkeypatch, token, status):
    """The text of the error of an upload to a signed address holds that address, and the one of a token that cannot be
    a header holds the token."""
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.utils._auth._clean_token", lambda token: token)
    if status is not None:
        hub.fail("/uploads/", status)
    with pytest.raises((InputError, ConnectionError)) as caught:
        upload_checkpoint(folder, "ann/model", revision="main")
    shown = "".join(traceback.format_exception(caught.value))
    assert "The above exception was the direct cause" in shown
    assert ("HfHubHTTPError" if status else "ProtocolError") in shown
    assert "huggingface_hub" in shown  # where
    assert SIGNATURE not in shown
    assert "new0line" not in shown
    assert TOKEN not in shown


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["model", "a/b/c", "ann/mo del"])
def test_repository_names(folder, name):
    with pytest.raises(InputError):
        upload_checkpoint(folder, name, revision="main")


def test_no_hub_at_all(hub, folder):
    hub.close()
    with pytest.raises(ConnectionError, match="nothing was published"):
        upload_checkpoint(folder, "ann/model", revision="main")
