"""Upload to the Hugging Face Hub: one commit, all of a folder or nothing of it."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from harmonic_gpt.errors import InputError, is_out_of_memory, option, reason_of

MAIN = "main"
REFUSED = {
    400: "it does not take these files or this name",
    401: "no valid token; run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write access, and your own or your organization's name",
    404: "no such repository, or the token may not see it",
}


def check_repository_name(repo: str) -> None:
    """Raises InputError unless it is USER/NAME; more is left to the Hub."""
    if repo.count("/") != 1:
        raise InputError(f"{option('repo')}: expected USER/NAME, got {repo!r}")


def upload_checkpoint(
    folder: Path, repo: str, *, revision: str, private: bool = True, progress: bool = False, space: bool = False
) -> str:
    """Commit the files of `folder` to the branch `revision` of a model repository; creates either where it is missing.
    Files whose path has a part that begins with a dot (.git, .cache, .env) stay here, except .gitattributes.

    Large files go up first and stay invisible; one commit then publishes all. After an upload that was cut short,
    calling again continues: what the Hub has already is not sent twice. The token is huggingface_hub's own: `hf auth
    login` or HF_TOKEN.

    Args:
        repo: USER/NAME.
        private: a new repository is private. An existing public one is refused: nothing meant to be private is shown.
        progress: draw bars (not from the background of a training run, which has its own).
        space: the repository is a Space of static pages instead.
    Returns: address of the commit.
    Raises:
        InputError: the Hub refuses the name, token or files, or the repository is public where a private one was asked
            for.
        ConnectionError: no connection, 5xx, upload cut short. Says whether anything was published. Neither the messages
            nor their causes hold the token or a signed address.
    """
    check_repository_name(repo)
    (enable_progress_bars if progress else disable_progress_bars)()
    api, kind = HfApi(), "space" if space else "model"
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    outcome = "nothing was published"
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type=kind, space_sdk="static" if space else None)
        if private and not api.repo_info(repo, repo_type=kind).private:
            raise InputError(
                f"{repo} is public on the Hub, and this upload is to be private; name another repository, or publish "
                "openly"
            )
        if revision != MAIN:
            api.create_branch(repo, branch=revision, exist_ok=True, repo_type=kind)
        api.preupload_lfs_files(repo, operations, revision=revision, repo_type=kind)
        commits = f"{api.endpoint}/{'spaces/' if space else ''}{repo}/commits/{revision}"
        outcome = f"whether it was published is not known: look at {commits}. Uploading again is safe"
        message = f"Upload {folder.name}"
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision, repo_type=kind)
        return commit.commit_url
    except InputError:
        raise
    except Exception as error:  # huggingface_hub, its HTTP library and the xet client raise many kinds
        if is_out_of_memory(error):
            raise
        raise _explained(error, repo, api.endpoint, outcome) from _without_its_text(error)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) and path.name != ".gitattributes"


def _explained(error: BaseException, repo: str, endpoint: str, outcome: str) -> InputError | ConnectionError:
    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in REFUSED:
            return InputError(f"the Hub refuses {repo} ({status}): {REFUSED[status]}; nothing was published")
        return ConnectionError(f"the Hub answered {status} for {repo}; {outcome}")
    if isinstance(error, ValueError):  # a name that cannot be one
        return InputError(f"{repo}: {reason_of(error)}; nothing was published")
    return ConnectionError(f"upload to {repo} at {endpoint} was cut short: {type(error).__name__}; {outcome}")


def _without_its_text(error: BaseException) -> Exception:
    """A cause to show in the error's place: where it was raised, and its kinds. Its text may hold headers or signed
    addresses, and tracebacks are sent to strangers."""
    kinds: list[str] = []
    inner: BaseException | None = error
    while inner is not None:
        kinds.append(type(inner).__name__)
        inner = inner.__cause__ or inner.__context__
    return RuntimeError(" from ".join(kinds)).with_traceback(error.__traceback__)
