"""Tasks as parallel prompts: one file a task, each a function that returns ParallelPrompts."""

from tl_neuronshare.tasks.fact_probing import fact_probing
from tl_neuronshare.tasks.knowledge_editing import knowledge_editing
from tl_neuronshare.tasks.mgsm import mgsm
from tl_neuronshare.tasks.table import table
from tl_neuronshare.tasks.translation import translation
from tl_neuronshare.tasks.world_facts import world_facts
from tl_neuronshare.tasks.xnli import xnli

__all__ = ["fact_probing", "knowledge_editing", "mgsm", "table", "translation", "world_facts", "xnli"]
