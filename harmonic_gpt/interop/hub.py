"""Upload to the Hugging Face Hub: one commit, all of a folder or nothing of it."""

from pathlib import Path

from httpx import HTTPError, RequestError
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from harmonic_gpt.errors import InputError

MAIN = "main"


def upload_checkpoint(folder: Path, repo: str, *, revision: str, private: bool = True) -> str:
    """Commit every file of `folder` to the branch `revision` of a model repository; creates either where it is missing.

    Large files go up first and stay invisible; one commit then publishes them all. An upload that was cut short is continued by
    calling again: what the Hub has already is not sent twice. The token is huggingface_hub's own: `hf auth login` or HF_TOKEN.

    Args:
        repo: USER/NAME.
        private: visibility of a new repository. An existing public one is refused, so that nothing meant to be private is shown.
    Returns: address of the commit.
    Raises:
        InputError: a name or token that the Hub refuses (401, 403, 404), a public repository where a private one was asked for.
        ConnectionError: no connection, 5xx, an upload cut short. Says whether anything was published. The message never holds the token.
    """
    api = HfApi()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    state = "nothing was published"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise InputError(f"{repo} is public on the Hub, and this upload is to be private; choose another repository, or allow public")
        if revision != MAIN:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.preupload_lfs_files(repo, operations, revision=revision)
        state = f"the commit was sent but not confirmed: look at {api.endpoint}/{repo}/commits/{revision}. Uploading again is safe"
        return str(api.create_commit(repo, operations, commit_message=f"Upload {folder.name}", revision=revision).commit_url)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _REFUSED:
            raise InputError(f"the Hub refuses {repo} ({status}): {_REFUSED[status]}; nothing was published") from None
        raise ConnectionError(f"the Hub answered {status} for {repo}; {state}") from None
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not a repository name; expected USER/NAME: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:  # how huggingface_hub reports a file whose upload failed, with the reason as its cause
        raise ConnectionError(f"upload to {repo} was interrupted: {_reason(error)}; {state}") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"no connection to the Hub at {api.endpoint}: {_reason(error)}; {state}") from None


_REFUSED = {
    401: "no valid token; run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use a token with write access, and your own or your organisation's name",
    404: "no such repository, or the token may not see it",
}


def _reason(error: BaseException) -> str:
    """One line without headers or addresses: the innermost error's kind, its HTTP status if it has one."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}"
    if isinstance(error, RequestError) or not str(error).strip():
        return type(error).__name__
    return str(error).strip().splitlines()[0]
