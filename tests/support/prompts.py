"""Prompts that several tests use."""

from __future__ import annotations

import tl_neuronshare as ns

# Answers and choices of one to many tokens; "ance" and the like merge with the text before them.
PROMPTS = {
    "en": ["The capital of Fr", "Two and three make", "The sk"],
    "de": ["Die Hauptstadt von Frank", "Zwei und drei sind", "Der Him"],
    "zh": ["法国的首", "二加三等", "天空"],
}
CHOICES = {
    "en": [["ance is", " Paris", "ance"], [" five", " six", " fire"], ["y is", "y", "ies"]],
    "de": [["reich ist", " Paris", "reich"], [" fünf", " sechs", " füng"], ["mel", "ten", "mels"]],
    "zh": [["都是", "都", "京"], ["于五", "于", "于六"], ["是", "很蓝", "不"]],
}
ANSWERS = {language: [row[index % 3] for index, row in enumerate(rows)] for language, rows in CHOICES.items()}
QUIZ = ns.ParallelPrompts(PROMPTS, ANSWERS, CHOICES)


def quiz_for(name: str) -> ns.ParallelPrompts:
    """Return the prompts with answers for attribution: the built-in model's own, or those for all models of the zoo."""
    return ns.demo.prompts()[:4].select(["en", "ru", "zh"]) if name == "demo" else QUIZ
