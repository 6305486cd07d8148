"""Small sources of the paper's tasks, in the original formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import sources


@pytest.fixture
def mpararel(tmp_path: Path) -> Path:
    return sources.mpararel(tmp_path / "mpararel_reviewed")


@pytest.fixture
def mzsre(tmp_path: Path) -> Path:
    return sources.mzsre(tmp_path / "MzsRE")


@pytest.fixture
def mgsm(tmp_path: Path) -> Path:
    return sources.mgsm(tmp_path / "mgsm")


@pytest.fixture
def translations(tmp_path: Path) -> Path:
    return sources.translations(tmp_path / "devtest")


@pytest.fixture
def xnli(tmp_path: Path) -> Path:
    return sources.xnli(tmp_path / "xnli.test.tsv")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
