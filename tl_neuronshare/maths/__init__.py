"""Pure mathematics: tensors in, tensors out. Nothing here depends on models, prompts or pandas."""
