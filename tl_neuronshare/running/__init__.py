"""Running a model over prompts: the plan of batches, the loop over them, and recording activations."""
