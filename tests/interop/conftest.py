import huggingface_hub.constants
import pytest

from tests.interop.hub_stand_in import TOKEN, HubStandIn


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback that huggingface_hub talks to, with a valid token."""
    stand_in = HubStandIn()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    for name, value in {"ENDPOINT": stand_in.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)  # between its retries
    yield stand_in
    stand_in.close()
