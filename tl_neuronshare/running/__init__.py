"""Running a model over prompts: the plan of batches, the one loop over them, and what is recorded."""
