"""Results on the Hugging Face hub, so that what was computed once, on a large machine, is there for everybody.

A result is a safetensors file in a data set repository. Beside it are its metadata, as JSON, and a card for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from tl_neuronshare.errors import NeuronShareError

_Result = TypeVar("_Result", bound="OnHub")
TAG = "tl-neuronshare"
_CARD = "README.md"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class OnHub:
    """What a result needs to be shared: a class that has `save`, `load`, `metadata` and `_repr_html_`."""

    metadata: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write to a file."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[_Result], path: str | Path) -> _Result:
        """Read from a file."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def push_to_hub(
        self, repo_id: str, *, name: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload to a data set repository of the Hugging Face hub, which is made if it is not there.

        The repository gets NAME.safetensors, its metadata as NAME.json, and a card with a section for each result,
        with the tag `tl-neuronshare`. Text of your own in the card stays. Prompts are not uploaded, only their hashes;
        the metadata says where the model was loaded from.

        Args:
            repo_id: the repository, such as "my-name/gemma-atlas".
            name: the name of the files, for several results in one repository; by default that of the kind of result,
                such as `NeuronSharing`.
            private: whether a new repository is private.
            token: an access token; by default that of `hf auth login`, or of the environment's HF_TOKEN.

        Returns:
            The address of the commit.

        Raises:
            NeuronShareError: the name cannot be that of a file, or the hub refuses the upload or is not reached.

        Examples:
            >>> sharing.push_to_hub("my-name/gemma-atlas")  # doctest: +SKIP
            'https://huggingface.co/datasets/my-name/gemma-atlas/commit/...'
        """
        from huggingface_hub import HfApi

        name = _name(type(self), name)
        api = HfApi(token=token, library_name="tl_neuronshare")
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.safetensors"
            self.save(file)
            file.with_suffix(".json").write_text(json.dumps(self.metadata, indent=1, ensure_ascii=False), "utf-8")
            with _said(repo_id):
                api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
                before = None
                if api.file_exists(repo_id, _CARD, repo_type="dataset"):
                    before = Path(api.hf_hub_download(repo_id, _CARD, repo_type="dataset")).read_text("utf-8")
            Path(folder, _CARD).write_text(self._card(before, repo_id, name), "utf-8")
            message = f"{name}, by tl_neuronshare"
            with _said(repo_id):
                commit = api.upload_folder(
                    repo_id=repo_id, repo_type="dataset", folder_path=folder, commit_message=message
                )
        return str(commit.commit_url)

    @classmethod
    def from_hub(
        cls: type[_Result],
        repo_id: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> _Result:
        """Download what `push_to_hub` uploaded, or open the copy of an earlier download.

        Args:
            repo_id: as in `push_to_hub`.
            name: as in `push_to_hub`.
            revision: a commit, tag or branch; the newest state by default.
            token: as in `push_to_hub`, for private repositories.

        Raises:
            NeuronShareError: there is no such repository, file or revision, the hub is not reached, or the file holds
                something else.

        Examples:
            >>> NeuronSharing.from_hub("my-name/gemma-atlas")  # doctest: +SKIP
            NeuronSharing(100 examples x 9 languages (en, de, es, fr, ru, th, tr, vi, zh), 18 layers of 2048 neurons)
        """
        from huggingface_hub import hf_hub_download

        file = f"{_name(cls, name)}.safetensors"
        with _said(repo_id):
            path = hf_hub_download(repo_id, file, repo_type="dataset", revision=revision, token=token)
        return cls.load(path)

    def _card(self, before: str | None, repo_id: str, name: str) -> str:
        """The card with this result's section, new or in the place of its older one."""
        section = self._section(repo_id, name)
        if before is None:
            return "\n".join(
                [
                    "---",
                    f"tags:\n- {TAG}\n- interpretability",
                    "---",
                    f"# {repo_id.rpartition('/')[2]}",
                    "",
                    "Which MLP neurons of a model each language activates, and which of them languages share, by",
                    "[Sharing Matters](https://arxiv.org/abs/2406.09265) and the package `tl_neuronshare`.",
                    "",
                    section,
                ]
            )
        start, end = _marks(name)
        old = re.compile(f"{re.escape(start)}.*?{re.escape(end)}\n", re.DOTALL)
        if old.search(before):
            return old.sub(lambda _: section, before, count=1)
        return f"{before.rstrip()}\n\n{section}"

    def _section(self, repo_id: str, name: str) -> str:
        kind, (start, end) = type(self).__name__, _marks(name)
        named = "" if name == kind else f', name="{name}"'
        about = json.dumps(self.metadata, indent=1, ensure_ascii=False)
        fence = "`" * (1 + max((len(run) for run in re.findall("`+", about)), default=2))
        return (
            f"{start}\n## {name}\n\n```python\nimport tl_neuronshare as ns\n\n"
            f'ns.{kind}.from_hub("{repo_id}"{named})\n```\n\n{self._repr_html_()}\n\n'
            f"How it was made:\n\n{fence}json\n{about}\n{fence}\n{end}\n"
        )


def _marks(name: str) -> tuple[str, str]:
    """The lines between which the card's section of a result is."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def _name(kind: type, name: str | None) -> str:
    """The name of a result's files, checked."""
    name = kind.__name__ if name is None else name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "--" in name or name == "README":
        raise NeuronShareError(f"name={name!r}; give one of letters, digits, dots and single dashes, such as 'layers'.")
    return name


@contextmanager
def _said(repo_id: str) -> Iterator[None]:
    """Say in our words what the hub refuses."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    not_reached = "the hub is not reached; is there a network?"
    reasons: Mapping[type[Exception], str] = {  # the first that fits
        HFValidationError: "give one such as 'my-name/gemma-atlas'",
        LocalEntryNotFoundError: not_reached,
        EntryNotFoundError: "it has no such file; its page shows what it has",
        HfHubHTTPError: "the hub refuses; see whether it is there, and whether your token may use it",
        HTTPError: not_reached,
        OSError: not_reached,
    }
    try:
        yield
    except tuple(reasons) as error:
        reason = next(reason for kind, reason in reasons.items() if isinstance(error, kind))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NeuronShareError(f"The repository {repo_id!r}: {reason}. ({lines[0]})") from error
