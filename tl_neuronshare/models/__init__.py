"""Everything that depends on TransformerLens and on Hugging Face's modules; other folders use the names listed here."""

from tl_neuronshare.models.added import Added, added_through
from tl_neuronshare.models.forward import (
    OnDevices,
    forward,
    last_logits,
    last_positions_only,
    layer_hooks,
    on_cpu,
    reading,
    run,
    values_of,
)
from tl_neuronshare.models.head import check_unembedding, final_norm, unembedding
from tl_neuronshare.models.hooks import Editing, Hooks, all_firing, has_hooks, hooked, unwrapped, without_hooks
from tl_neuronshare.models.inputs import Inputs, inputs_of
from tl_neuronshare.models.layers import final_residual, is_gated, neuron_layers, residual_after, why_name_a_site
from tl_neuronshare.models.lens import (
    LensModel,
    architecture_of,
    blocks_of,
    check_model,
    check_position,
    device_of,
    dtype_of,
    has_hooked_transformer,
    is_bridge,
    is_edited,
    is_processed,
    left_as_found,
    loaded,
    name_of,
    nested,
    quantisation_of,
    require_architecture,
    stacks_of,
    version_of_transformer_lens,
)
from tl_neuronshare.models.neurons import NeuronHook, NeuronLayer, Places, Site, Stack
from tl_neuronshare.models.packing import Packing, rope_boundary, windows
from tl_neuronshare.models.tokens import (
    answer_tokens,
    check_length,
    decoder_prompt,
    end_tokens,
    is_text,
    knows_bos,
    left_padded,
    padded_apart,
    resolve_prepend_bos,
    special_tokens,
    tokenise,
    tokenised,
    vocabulary_size,
)
