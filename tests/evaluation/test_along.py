"""Types along texts, against the types at one token, and against runs of one text at a time."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns


@pytest.fixture(params=["bloom", "llama"])
def model(animals, backend, request):
    return animals.lens(request.param, backend)


@pytest.mark.filterwarnings("ignore:The MLPs of .* are gated")
def test_steps_of_the_prompt_are_what_categorise_gives(model, prompts):
    prompts = prompts[:4]  # the last one has a single token in German
    along = ns.types_along(model, prompts, before=2, after=3, threshold=0.01, batch_size=3)
    for step, position in ((0, "last"), (-1, -2)):
        expected = ns.categorise(model, prompts, position=position, threshold=0.01)
        assert (along.results[step].activated() == expected.activated()).float().mean() > 0.9999
        assert along.results[step].languages == prompts.languages


@pytest.mark.filterwarnings("ignore:The MLPs of .* are gated")
def test_new_tokens_are_those_of_a_plain_loop_and_are_read_where_they_stand(model, prompts):
    n_new = 3
    along = ns.types_along(model, prompts, before=1, after=n_new, threshold=0.01)
    ends = {model.tokenizer.eos_token_id}
    differing = total = 0
    for number, language in enumerate(prompts.languages):
        for example in range(len(prompts)):
            tokens = model.to_tokens(prompts.prompts[language][example])
            for step in range(1, n_new + 1):
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
                if ends & set(tokens[0, -step:].tolist()):
                    break
                said = along.tokens.query("language == @language and example == @example and step == @step")
                assert said["token"].tolist() == [model.tokenizer.decode(tokens[0, -1:])]
                if step not in along.results or len(along.results[step]) < len(prompts):
                    continue
                _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("mlp.hook_post"))
                for layer, name in enumerate(along.results[step].hooks):
                    expected = cache[name][0, -1] > 0.01
                    differing += int((along.results[step].activated([example])[0, number, layer] != expected).sum())
                    total += expected.numel()
    assert total > 0
    assert differing / total < 1e-4


def test_after_an_end_an_example_is_left_out(animals):
    """The built-in model ends its answers; a currency in words is longer than a code."""
    model = animals.lens("demo", "bridge")
    prompts = ns.demo.prompts().select(["en", "zh"])
    prompts = prompts.where(lambda row: row["example"] in prompts.examples[:12])
    along = ns.types_along(model, prompts, before=1, after=8)
    n_tokens = along.tokens.groupby(["example", "language"])["step"].max().unstack().min(axis=1)
    for step, sharing in along.results.items():
        assert len(sharing) == int((n_tokens >= step).sum())
    assert len(along.results[1]) == len(prompts)
    assert 8 not in along.results
    texts = along.tokens.query("step > 0").groupby(["language", "example"], sort=False)["token"].agg("".join)
    known = ns.evaluate(model, prompts, scoring="exact").set_index(["language", "example"])["prediction"]
    assert {place: text.strip() for place, text in texts.items()} == {
        place: text.strip() for place, text in known.items()
    }
    table = ns.side_by_side(along.results, name="step")
    assert table["step"].unique().tolist() == list(along.results)


@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_be_read_along(bloom, prompts):
    with pytest.raises(ns.NeuronShareError, match="the prompt has .* tokens, and before=50; ask for fewer"):
        ns.types_along(bloom, prompts, before=50)
    with pytest.raises(ns.NeuronShareError, match="before=0"):
        ns.types_along(bloom, prompts, before=0)
    with pytest.raises(ns.NeuronShareError, match="context is"):
        ns.types_along(bloom, prompts, before=1, after=bloom.cfg.n_ctx)
    with pytest.raises(ns.NeuronShareError, match=r"threshold=\[0.1\]"):
        ns.types_along(bloom, prompts, threshold=[0.1])
    with pytest.raises(ns.NeuronShareError, match="prompts is a dict"):
        ns.types_along(bloom, {"en": ["a"]})
