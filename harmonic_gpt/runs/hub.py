"""Upload to the Hugging Face Hub: one commit, all of a folder or nothing of it."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from harmonic_gpt.errors import InputError

MAIN = "main"
REFUSED = {
    400: "it does not take these files or this name",
    401: "no valid token; run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write access, and your own or your organisation's name",
    404: "no such repository, or the token may not see it",
}


def upload_checkpoint(folder: Path, repo: str, *, revision: str, private: bool = True, progress: bool = False) -> str:
    """Commit every file of `folder` to the branch `revision` of a model repository; creates either where it is missing.

    Large files go up first and stay invisible; one commit then publishes all. After an upload that was cut short,
    calling again continues: what the Hub has already is not sent twice. The token is huggingface_hub's own: `hf auth
    login` or
        HF_TOKEN.

    Args:
        repo: USER/NAME.
        progress: draw bars (not from the background of a training run, which has its own).
        private: a new repository is private. An existing public one is refused: nothing meant to be private is shown.
    Returns: address of the commit.
    Raises:
        InputError: the Hub refuses the name, token or files, or the repository is public where a private one was asked
        for.
        ConnectionError: no connection, 5xx, upload cut short. Says whether anything was published. No message holds the
            token.
    """
    if repo.count("/") != 1:
        raise InputError(f"expected a repository USER/NAME, got {repo!r}")
    (enable_progress_bars if progress else disable_progress_bars)()
    api = HfApi()
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    outcome = "nothing was published"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise InputError(
                f"{repo} is public on the Hub, and this upload is to be private; name another repository, or publish openly"
            )
        if revision != MAIN:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.preupload_lfs_files(repo, operations, revision=revision)
        outcome = f"whether it was published is not known: look at {api.endpoint}/{repo}/commits/{revision}. Uploading again is safe"
        return api.create_commit(repo, operations, commit_message=f"Upload {folder.name}", revision=revision).commit_url
    except (InputError, KeyboardInterrupt):
        raise
    except (
        Exception
    ) as error:  # its HTTP library, the xet client and huggingface_hub itself raise many kinds, not all of them public
        cause: BaseException = error
        while not isinstance(cause, HfHubHTTPError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if not isinstance(cause, HfHubHTTPError):
            # The kind only where the text may hold headers or signed addresses
            text = str(cause).splitlines()[0] if isinstance(cause, ValueError) and str(cause) else type(cause).__name__
            if isinstance(cause, ValueError):
                raise InputError(f"{repo}: {text}; nothing was published") from None
            raise ConnectionError(f"upload to {repo} at {api.endpoint} was cut short: {text}; {outcome}") from None
        status = cause.response.status_code
        if status in REFUSED:
            raise InputError(f"the Hub refuses {repo} ({status}): {REFUSED[status]}; nothing was published") from None
        raise ConnectionError(f"the Hub answered {status} for {repo}; {outcome}") from None
