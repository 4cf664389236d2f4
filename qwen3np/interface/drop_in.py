"""What Embedder and Reranker have in common: checked settings, and the names that scripts use.

The names are those of sentence-transformers' models. One that cannot be served says what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from . import copies
from .torch_only import suggestion

if TYPE_CHECKING:
    from pathlib import Path

    from ..loading.checkpoint import Checkpoint
    from ..runtime.backend import Backend

Self = TypeVar("Self", bound="DropIn")

CPU = "{0} runs on the CPU alone"
PROCESSES = "one process uses all cores, num_threads=... of {0} sets how many; give all in one call"
TRAINING = "{0} does not train: train with sentence-transformers and load the folder that it saves"
ADAPTERS = "merge the adapter into the weights first (PeftModel.merge_and_unload), and load what that saves"
HUB = "huggingface_hub.upload_folder(repo_id=..., folder_path=model.checkpoint.folder) uploads the model"
TORCH = (
    "{0} is not a torch.nn.Module; its weights are in model.checkpoint.tensors, its config is model.config"
)
PRECISION = 'weights keep the type they are stored in; matmul_precision="medium" multiplies in bfloat16'
TOKENS = "model.tokenize(texts) gives the token ids"
EVALUATION = "give the model's vectors or scores to the metric, or use mteb (docs/mteb.md)"

# What to do instead -> the names of sentence-transformers 6.2 that are not served.
INSTEAD = {
    CPU: "cuda ipu xpu mtia clear_placement_cache to_empty",
    PROCESSES: "start_multi_process_pool stop_multi_process_pool encode_multi_process share_memory",
    TRAINING: "fit old_fit smart_batching_collate smart_batching_collate_text_only zero_grad "
    "gradient_checkpointing_enable get_sentence_features set_pooling_include_prompt",
    ADAPTERS: "active_adapter active_adapters add_adapter check_peft_compatible_model delete_adapter "
    "disable_adapters enable_adapters get_adapter_state_dict has_peft_compatible_model load_adapter "
    "set_adapter",
    HUB: "push_to_hub save_to_hub model_card_data model_card_data_class merge "
    "default_huggingface_organization",
    PRECISION: "half double bfloat16 type set_keep_in_fp32_modules",
    TOKENS: "preprocess processor is_singular_input",
    EVALUATION: "evaluate",
    TORCH: "model transformers_model model_type auto_model T_destination add_module append apply buffers "
    "call_super_init children dump_patches extend extra_repr forward get_buffer get_extra_state "
    "get_parameter get_submodule insert load_state_dict modules named_buffers named_children "
    "named_modules named_parameters parameters pop register_backward_hook register_buffer "
    "register_forward_hook register_forward_pre_hook register_full_backward_hook "
    "register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter "
    "register_state_dict_post_hook register_state_dict_pre_hook set_extra_state set_submodule "
    "smart_apply state_dict",
}
CURES = {name: instead for instead, names in INSTEAD.items() for name in names.split()}


class Device(str):
    """The string "cpu", with what scripts ask of a torch.device."""

    type = "cpu"


class DropIn:
    """The base of Embedder and Reranker."""

    checkpoint: Checkpoint
    backend: Backend
    max_seq_length: Any  # a checked property of each
    _prompts: dict[str, str]
    _default_prompt_name: str | None = None

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt texts by their names.

        Setting them raises TypeError for what is not a mapping of str to str, and ValueError where
        default_prompt_name is not among them.
        """
        return self._prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        if not isinstance(prompts, Mapping):
            raise TypeError(f"prompts is {type(prompts).__name__}, expected a mapping of names to texts")
        for name, text in prompts.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"prompts: {name!r} is {type(text).__name__}, expected a name and its text")
        self._check_prompt_name(self._default_prompt_name, prompts)
        self._prompts = dict(prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt of calls that name none.

        Setting it raises ValueError for a name that is not in `prompts`.
        """
        return self._default_prompt_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        self._check_prompt_name(name, self._prompts)
        self._default_prompt_name = name

    @property
    def device(self) -> Device:
        """Where the model computes: always the CPU."""
        return Device("cpu")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the results: float32."""
        return np.dtype(np.float32)

    @property
    def modalities(self) -> list[str]:
        """What the model takes: text."""
        return ["text"]

    def supports(self, modality: object) -> bool:
        """Return whether `modality` is "text"."""
        return modality == "text"

    def get_max_seq_length(self) -> int:
        """Return `max_seq_length`, by sentence-transformers' name."""
        return self.max_seq_length

    def get_backend(self) -> str:
        """Return the name of what runs the encoder."""
        return self.backend.name

    def get_model_kwargs(self) -> list[str]:
        """Return the further arguments of a model's own: none."""
        return []

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Return the model itself where it is told to be on the CPU and in float32.

        Raises TypeError for anything else.
        """
        for value in (*args, *kwargs.values()):
            if str(value) not in ("None", "cpu", "cpu:0", "torch.float32", "float32", "True", "False"):
                name = type(self).__name__
                raise TypeError(f"{name}.to({value}): {CPU.format(name)}, in float32; leave it out")
        return self

    def _itself(self: Self) -> Self:
        """Return the model itself: it is on the CPU, in float32, and does not train."""
        return self

    cpu = float = eval = _itself

    def train(self: Self, mode: bool = True) -> Self:
        """Return the model itself with mode=False, which is what it is in; raise TypeError otherwise."""
        if mode:
            raise TypeError(f"{type(self).__name__}.train(): {TRAINING.format(type(self).__name__)}")
        return self

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Return the model itself with requires_grad=False; raise TypeError otherwise."""
        return self.train(requires_grad)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the kernels are compiled already."""

    def save_pretrained(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Copy the model's folder to `path`, with the prompts and the other settings that this model has now.

        Args:
            path: A new or empty folder; nothing is ever overwritten.
            *args: As in sentence-transformers; they have no meaning here.
            **kwargs: As in sentence-transformers; they have no meaning here.

        Raises:
            FileExistsError: `path` holds anything.
            OSError: The copy failed; then nothing is left of it.
        """
        copies.save(self.checkpoint.folder, path, self._saved_settings())

    save = save_pretrained

    def _saved_settings(self) -> dict[str, dict[str, Any]]:
        """Return file -> key -> value, for what differs from the folder that was loaded."""
        raise NotImplementedError

    def _prompt(self, name: str | None) -> str:
        """Return the prompt of that name, "" for None; raise ValueError for an unknown name."""
        if name is None:
            return ""
        self._check_prompt_name(name, self.prompts)
        return self.prompts[name]

    def _check_prompt_name(self, name: Any, prompts: Mapping[str, str]) -> None:
        if name is not None and name not in prompts:
            raise ValueError(f"prompt name {name!r} is not one of {sorted(prompts)}")

    if not TYPE_CHECKING:  # or a type checker would believe that every name is there

        def __getattr__(self, name: str) -> NoReturn:
            """Raise AttributeError for a name that does not exist, with what to do instead."""
            kind = type(self).__name__
            if name.startswith("_"):
                raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
            cure = CURES.get(name)
            if cure is None:
                raise AttributeError(f"{kind} has no {name!r}{suggestion(name, dir(type(self)))}")
            raise AttributeError(f"{kind} has no {name!r}: {cure.format(kind)}")
