"""Freezes transformers' Qwen3 at every stage, for tests that run without it.

    python tests/make_fixtures.py       writes tests/fixtures/states.npz (needs the extra `hf`)

The only file here that imports torch. The model has 3 layers and no two dimensions alike (D 48, F 80, N 6,
K 2, H 10: N*H = 60 != D), non-default eps and theta, and gammas that are random and different, so that no
confusion of two things can pass. It runs in float64, from weights that are exact in bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": 131,
    "max_position_embeddings": 512,
    "rms_norm_eps": 3e-3,
    "rope_theta": 7000.0,
    "tie_word_embeddings": True,
}
LENGTHS = (5, 18)


def main() -> None:
    import torch
    import transformers
    from transformers import Qwen3Config, Qwen3Model

    # transformers' rotary table and RMSNorm compute in float32 even in a float64 model: that is the published
    # arithmetic for the first; the second costs 1e-7, so it is run in float64 here, with the formula of the
    # source.
    from transformers.models.qwen3 import modeling_qwen3

    def rms_norm_float64(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    modeling_qwen3.Qwen3RMSNorm.forward = rms_norm_float64
    keep = {k: v for k, v in CONFIG.items() if k not in ("model_type", "rope_theta")}
    config = Qwen3Config(**keep, rope_parameters={"rope_theta": CONFIG["rope_theta"], "rope_type": "default"})
    config._attn_implementation = "eager"
    model = Qwen3Model(config).double().eval()
    rng = np.random.default_rng(20250605)
    stored = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            values = np.exp(rng.normal(0.0, 0.6, parameter.shape))
        else:
            std = 1.0 if name.startswith("embed_tokens") else 1.5 * parameter.shape[1] ** -0.5
            values = rng.normal(0.0, std, parameter.shape)
        bits = torch.tensor(values).bfloat16()
        stored[name] = bits.view(torch.int16).numpy().view(np.uint16)
        with torch.no_grad():
            parameter.copy_(bits.double())

    arrays = {f"weights/{name}": bits for name, bits in stored.items()}
    for length in LENGTHS:
        ids = rng.integers(0, CONFIG["vocab_size"], length)
        states: dict[str, np.ndarray] = {}

        def keep_state(name, states=states):
            def hook(module, inputs, output):
                output = output[0] if isinstance(output, tuple) else output
                states[name] = output[0].numpy()

            return hook

        hooks = [
            module.register_forward_hook(keep_state(name))
            for name, module in model.named_modules()
            if name in ("embed_tokens", "norm") or name.startswith("layers.")
        ]
        with torch.no_grad():
            model(torch.tensor(ids)[None])
        for handle in hooks:
            handle.remove()
        arrays[f"{length}/ids"] = ids
        # float32 is enough: what is compared with it has float32's errors at the least.
        arrays |= {f"{length}/{name}": state.astype(np.float32) for name, state in states.items()}
    FIXTURES.mkdir(exist_ok=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(
        FIXTURES / "states.npz", versions=np.array(versions), config=np.array(json.dumps(CONFIG)), **arrays
    )
    size = (FIXTURES / "states.npz").stat().st_size
    print(f"{versions}: {len(arrays)} arrays, {size / 1e3:.0f} KB")
    print(*sorted(k for k in arrays if k.startswith("7/")), sep="\n")


if __name__ == "__main__":
    main()
