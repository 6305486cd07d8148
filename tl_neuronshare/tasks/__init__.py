"""Tasks as parallel prompts: one file a task, each a function that returns ParallelPrompts."""

from tl_neuronshare.tasks.world_facts import world_facts

__all__ = ["world_facts"]
