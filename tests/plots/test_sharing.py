"""Figures of types."""

from __future__ import annotations

import pytest

import tl_neuronshare as ns


@pytest.mark.usefixtures("as_users_run_it")
def test_tables_that_do_not_fit_a_figure(bloom, prompts):
    sharing = ns.categorise(bloom, prompts)
    with pytest.raises(ns.NeuronShareError, match=r"summary lacks the column.*type"):
        ns.plots.patterns(sharing.by_language(), sharing.by_language())
