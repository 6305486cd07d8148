# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tutorial: one study, from prompts to a verdict
#
# This notebook asks whether languages share the neurons that hold a fact. It takes about a quarter of an hour to read, and two minutes to run on two cores. It
# downloads nothing: the model and its facts come with the library. At the end you put your own model into the first cell and run it again.
#
# To run it, type `pip install jupyterlab` and then `jupyter lab docs/tutorial.ipynb` in a checkout.

# %%
import tl_neuronshare as ns

model = ns.demo.load_model(device="cpu")  # or ns.load_model(...)
prompts = ns.demo.prompts()[:80]  # or ns.tasks.table("my.csv")
prompts

# %% [markdown]
# A row of the table is a language, and the columns are examples: one meaning, asked in nine languages. The answer continues the prompt. Here every prompt ends in the same
# arrow; remember that, because it is a reason for sharing that has nothing to do with facts.
#
# ## Which neurons are activated
#
# `categorise` runs every prompt once and keeps one bit for each neuron, language and example: whether its value at the last token is above 0. In a gated model you would also
# name the `site` (`"gate"` or `"post"`); this one has no gate.

# %%
sharing = ns.categorise(model, prompts, site="post")
sharing

# %% [markdown]
# The first column of numbers is what was measured, in percent of a layer, as the mean of the layers. A neuron is *all-shared* for an example if all nine languages activate it. The next two columns say what
# that means. *With different examples*, each language shows another fact: what is still shared is not due to the fact. *If independent*, each language's neurons are drawn at random, as many as there are.
#
# By layer, with the same two chance levels:

# %%
ns.plots.chance(sharing.summary(), title="80 facts, nine languages")

# %% [markdown]
# In every layer far more neurons are all-shared than with different facts. `excess` is that difference, in percent of the layer, with its 95 % interval over examples:

# %%
summary = sharing.summary()
columns = ["layer", "mean", "mismatched", "excess", "excess_low", "excess_high"]
summary.query("type == 'all-shared'")[columns].round(1)

# %% [markdown]
# ## What one neuron is
#
# Types and masks are plain tensors. Take one neuron of the last layer that is all-shared for the first example, and look at it: which tokens it promotes, of which type it is over all
# examples, and for which prompts it fires most.

# %%
all_shared = sharing.mask("all-shared")  # Bool[example layer neuron]
neuron = int(all_shared[0, 3].nonzero()[0])
table = ns.describe_neurons(model, [(3, neuron)], sharing=sharing, prompts=prompts, n_tokens=5)
table.T

# %% [markdown]
# ## Switching them off, by hand
#
# `ablation_hooks` gives ordinary TransformerLens hooks, so that you can use them in any run, beside your own.

# %%
example = 9
hooks = ns.ablation_hooks(model, all_shared[example])
for language in ("en", "ru", "zh"):
    prompt = prompts.prompts[language][example]
    before = model(prompt)
    after = model.run_with_hooks(prompt, fwd_hooks=hooks)
    answers = [model.tokenizer.decode(each[0, -1].argmax()) for each in (before, after)]
    print(f"{prompt}{answers[0]}, and without its all-shared neurons{answers[1]}")

# %% [markdown]
# Every language now gives the same wrong answer. That *something* breaks was to be expected: some 27 neurons of each layer are gone. The question is whether it is because they are shared.
#
# ## Switching them off, beside controls
#
# `ablation_study` zeroes each example's own neurons, and then as many others, each of which answers one objection:
#
# * `random`: any neurons. *Does it matter which are zeroed?*
# * `random-active`: neurons that are active for this prompt in this language. *Does it matter that they are shared, and not only active?*
# * `magnitude`: neurons that write as much. *Is it only that they are strong?*
# * `other-example`: the all-shared neurons of another example. *Are they about this fact at all?*

# %%
study = ns.ablation_study(
    model,
    prompts[:40],
    sharing[:40],
    types=["all-shared", "specific"],
    scoring="exact",
    seeds=[0],
)
accuracy = study.query("language == 'all' and metric == 'accuracy'")
columns = ["type", "ablated", "value", "difference", "low", "high", "neurons"]
accuracy[columns].round(2)

# %%
ns.plots.ablation(study, title="40 facts: without a type, and without as many others")

# %% [markdown]
# `difference` is the change of accuracy, with a 95 % interval over examples. Read each control beside the type. In this model a fact's all-shared neurons cost more than any control, and
# another fact's all-shared neurons cost half as much: part of what is shared is about the fact, and part is about the form of the question.
#
# This model was trained so that languages share. In [a real one](gemma-3-270m.md) a different fact's all-shared neurons cost as much as a fact's own.
#
# ## What they write
#
# An ablation says what breaks. Attribution says what the neurons push towards: the right answer's logit, beside a wrong answer's.

# %%
scores = ns.attribute(model, prompts[:40], sharing[:40])
ns.plots.correctness(scores, title="What each type pushes towards the right answer")

# %% [markdown]
# ## Neurons of one language
#
# The other way round: which neurons belong to one language? `ns.methods` has what others have published. LAPE takes the rates with which each language's text activates a neuron.

# %%
rates = ns.activation_rates(model, prompts.prompts, site="post")
masks = ns.methods.lape(rates, share=0.05)
{language: int(mask.sum()) for language, mask in masks.items()}

# %% [markdown]
# Any mask goes into the same study, beside the same controls: `ns.ablation_study(model, prompts, {"lape, Thai": masks["th"]})`.
#
# ## Keep it
#
# A result is one file. `ns.NeuronSharing.load` opens it, `push_to_hub` shares it, and `metadata` says how it was made.

# %%
sharing.save("sharing.safetensors")
again = ns.NeuronSharing.load("sharing.safetensors")
print(again == sharing)
print({key: again.metadata[key] for key in ("model", "site", "fingerprint")})

# %% [markdown]
# ## Now yours
#
# Put your model and your prompts into the first cell and run the notebook again. [Your own model, languages and task](your-own.md) says what makes good prompts,
# [what is measured](categorise.md) what you choose with a site and a position, and [ablation](ablation.md) what each control answers.
