"""Pure mathematics: tensors in, tensors out. No model, no prompts and no pandas are known here."""
