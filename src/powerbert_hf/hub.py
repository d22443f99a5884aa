# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishing a model or a configuration by itself, with its card; finding and applying configurations.

What is published goes up in one commit, so that a repository is either as it was or complete; the same command
completes what broke off, and has nothing to do where all is there already.
"""

import hashlib
import logging
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .card import card_of, fitting_tags, is_own, known_of, make_card, run_of
from .checkpoint import hub_id, load_classifier, load_config, load_tokenizer
from .files import check_free, whole_folder
from .retention_file import RetentionFile, hub_reason, read_retention, shape_of

logger = logging.getLogger(__name__)

# The Hub puts it into every new repository.
_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class Remote:
    """A repository that is there already.

    Args:
        private: nobody else sees it.
        commit: its newest.
        files: the digest of each file by its path, without the one that the Hub puts into every repository.
    """

    private: bool
    commit: str
    files: dict[str, str]


def publish(
    model: str | Path,
    repo: str,
    public: bool = False,
    with_code: bool = False,
    retention_only: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    say: Callable[[str], None] = logger.info,
) -> str:
    """Publish a model with its tokenizer, configuration and card, or its configuration by itself.

    Args:
        model: the folder of a run of `powerbert train`, whose report goes on the card; or a model of this package, a
            folder or a Hub id.
        repo: `user/name`.
        public: for everybody to see; a new repository is private otherwise.
        with_code: the modelling files go along, for those who have no plugin and trust them.
        retention_only: `retention.json` and a card, no weights.
        overwrite: a repository that holds something else has nothing but this afterwards.
        dry_run: say what would go up, and send nothing.
        token: of the Hub; that of `hf auth login` or HF_TOKEN if it is `None`.
        say: told what is going on, a line at a time.

    Returns:
        The address of the repository.

    Raises:
        ValueError: for a model that cannot be published, or where the Hub does not take it; what is there stays as it
            was.
    """
    if with_code and retention_only:
        raise ValueError("`--with-code` is for a model and `--retention-only` has none, got both; leave one out.")
    check_repo(repo)
    api = HfApi(token=token)
    if not dry_run:
        check_access(repo, token)
    with tempfile.TemporaryDirectory() as folder:
        assemble(Path(folder), model, repo, with_code, retention_only)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*"))}
        files = {name: path for name, path in files.items() if path.is_file()}
        for name, path in files.items():
            say(f"{path.stat().st_size:>13,} bytes  {name}")
        if dry_run:
            say(f"\n{files['README.md'].read_text(encoding='utf-8')}")
        else:
            _send(api, repo, files, public, overwrite, say)
    return f"{api.endpoint}/{repo}"


def check_repo(repo: str | None, option: str = "--repo") -> None:
    """Refuse a name that no repository can have.

    Args:
        repo: the name.
        option: that it was given with, for the message.

    Raises:
        ValueError: for anything but `user/name`.
    """
    try:
        validate_repo_id(repo or "")
        valid = "/" in (repo or "")
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(f"`{option}` must be a repository, `user/name`, got {repo!r}; choose such a name.")


def check_access(repo: str, token: str | None = None, new: bool = False) -> None:
    """Make sure that there is a token which the Hub accepts, before the work that it is for is done.

    Args:
        repo: `user/name`.
        token: see [`publish`].
        new: the repository must not hold anything yet.

    Raises:
        ValueError: where there is none, or the repository holds something.
    """
    api = HfApi(token=token)
    with _asking(f"{repo} cannot be published"):
        api.whoami()
    there = _remote(api, repo) if new else None
    if there is not None and there.files:
        remedy = "choose another name, or train without it and `powerbert publish --overwrite` afterwards"
        raise _not_unasked(repo, there, remedy)


def _not_unasked(repo: str, there: Remote, remedy: str) -> ValueError:
    return ValueError(
        f"A repository is not overwritten unasked, got {repo}, which holds {len(there.files)} files; {remedy}."
    )


def assemble(
    folder: Path, model: str | Path, repo: str, with_code: bool = False, retention_only: bool = False
) -> None:
    """Fill a folder with what [`publish`] sends.

    Args:
        folder: empty.
        model: see [`publish`].
        repo: see [`publish`].
        with_code: see [`publish`].
        retention_only: see [`publish`].

    Raises:
        ValueError: for a model that cannot be published.
    """
    source = Path(model)
    if source.is_dir() and (source / "command.json").is_file() and run_of(source) is None:
        if (source / "sweep.json").is_file():
            first = min(source.glob("speedup-*"), default=source)
            raise ValueError(f"One run is published at a time, got a sweep in {model}; choose one, such as {first}.")
        raise ValueError(f"Only a finished run can be published, got none in {model}; go on with its command first.")
    run = run_of(source) if source.is_dir() else None
    weights = model if run is None else run / "final"
    card = card_of(weights)
    if retention_only:
        facts = known_of(model, load_config(weights), repo, card, weights=False)
    else:
        classifier = load_classifier(weights, needs_head=True, dtype="auto")
        facts = known_of(model, classifier.config, repo, card, with_code=with_code)
        _save(classifier, folder, with_code)
        load_tokenizer(weights, classifier.config).save_pretrained(folder)
    facts.retention.save(folder)
    # One that somebody wrote for the model stays.
    own = not retention_only and card is not None and is_own(card)
    (folder / "README.md").write_text(str(card if own else make_card(facts)), encoding="utf-8")


def _save(model: PreTrainedModel, folder: Path, with_code: bool) -> None:
    config = model.config
    if with_code:
        classifier, base, kind = type(model), type(model.base_model), type(config)
        custom_object_save(model, folder)
        config.auto_map = {
            auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
            for auto, cls in (
                ("AutoConfig", kind),
                ("AutoModel", base),
                ("AutoModelForSequenceClassification", classifier),
            )
        }
    model.save_pretrained(folder)


def _send(
    api: HfApi, repo: str, files: dict[str, Path], public: bool, overwrite: bool, say: Callable[[str], None]
) -> None:
    there = _remote(api, repo)
    if there is not None:
        same = there.files.keys() == files.keys() and all(_is(path, there.files[name]) for name, path in files.items())
        if same and there.private != public:
            say(f"{repo} holds all of this already")
            return
        if there.files and not same and not overwrite:
            remedy = "`powerbert publish --overwrite` has it hold this instead; or choose another name"
            raise _not_unasked(repo, there, remedy)
        if there.private == public:
            was, option = ("private", "`--public`") if public else ("public", "`--private`, the default,")
            raise ValueError(
                f"Whether a repository can be seen is changed on its page, got {option} for {repo}, which is {was}; "
                f"pass `--{was}` to publish there, or choose another name."
            )
    operations = [
        *(CommitOperationDelete(name) for name in (there.files if there else ()) if name not in files),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
    ]
    with _asking(f"{repo} cannot be published"):
        if there is None:
            api.create_repo(repo, private=not public)
        api.create_commit(
            repo,
            operations,
            commit_message="Publish with powerbert_hf",
            # What has changed since it was looked at is not overwritten.
            parent_commit=there.commit if there else None,
        )
    say(f"published, {'for everybody to see' if public else 'private'}: {api.endpoint}/{repo}")


def _remote(api: HfApi, repo: str) -> Remote | None:
    with _asking(f"{repo} cannot be published"):
        try:
            info = api.model_info(repo, files_metadata=True)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    files = {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id for one in info.siblings}
    files.pop(_ATTRIBUTES, None)
    return Remote(bool(info.private), info.sha, files)


def _is(path: Path, wanted: str) -> bool:
    """Whether a file has the digest that the Hub has of it: git's for a small one, the content's for a large one."""
    if len(wanted) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == wanted
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wanted


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn what the Hub or its client raise into one sentence, which begins with what cannot be done.

    Raises:
        ValueError: in place of any other error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LocalTokenNotFoundError):
            reason = "there is no token; log in with `hf auth login`, or set HF_TOKEN"
        elif getattr(getattr(error, "response", None), "status_code", None) == 409:
            reason = "a repository of this name is there, and the token does not open it; choose another name"
        elif getattr(getattr(error, "response", None), "status_code", None) == 412:
            reason = "somebody else changed the repository at the same time; look at it, then try again"
        else:
            reason = hub_reason(error) or textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".")
        raise ValueError(f"{what}: {reason}.") from error


def apply_folder(model: str | Path, retention: str | Path, folder: str | Path) -> RetentionFile:
    """Write a folder with a classifier that runs with a configuration from elsewhere.

    Args:
        model: a Hub id or a folder: BERT or ALBERT, stock or ours, with a trained classification head.
        retention: see `retention_file.read_retention`.
        folder: must not be there, or be empty.

    Returns:
        The configuration.

    Raises:
        ValueError: for a model, a configuration or a folder that cannot be used, or where they do not fit.
    """
    folder = Path(folder)
    check_free(folder)
    found = read_retention(retention)
    classifier = load_classifier(
        model, needs_head=True, dtype="auto", **found.fields_for(load_config(model), retention)
    )
    tokenizer = load_tokenizer(model, classifier.config)
    with whole_folder(folder) as partial:
        classifier.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        told = RetentionFile.of(classifier.config, base_model=hub_id(model))
        told.save(partial)
    return found


def find_retentions(model: str | Path | None = None, limit: int = 20) -> Iterator[tuple[str, RetentionFile]]:
    """Configurations on the Hub, the most downloaded first.

    Args:
        model: a Hub id or a folder: only those that fit it.
        limit: how many, at most.

    Yields:
        The Hub id, and what its `retention.json` says. A repository without one that can be read is left out.

    Raises:
        ValueError: for a model that cannot be used, or where the Hub cannot be asked.
    """
    wanted = ["power-bert"]
    if model is not None:
        wanted = fitting_tags(*shape_of(load_config(model)))
    with _asking("Configurations cannot be found"):
        found = [one.id for one in HfApi().list_models(filter=wanted, sort="downloads", limit=limit)]
    for repo in found:
        try:
            yield repo, read_retention(repo)
        except ValueError as error:
            logger.info("%s is left out: %s", repo, error)
