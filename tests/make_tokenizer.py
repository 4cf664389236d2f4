"""Trains the small tokenizer that comes with the package, on this project's own text.

    python tests/make_tokenizer.py      writes qwen3np/synth/tokenizer.json

The same construction as Qwen's (NFC, split regex, byte-level BPE, `<|endoftext|>` appended), 2,000 tokens
instead of 151,669, so that the demo and the tests run real tokenisation without the Hub.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).parent.parent
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]
VOCAB_SIZE = 2000


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - len(ADDED), initial_alphabet=alphabet, show_progress=False
    )
    texts = sorted(
        p
        for p in [
            *ROOT.glob("*.md"),
            *ROOT.glob("qwen3np/**/*.py"),
            *ROOT.glob("kernels/*.py"),
            *ROOT.glob("tests/*.py"),
        ]
    )
    tokenizer.train([str(p) for p in texts], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(ADDED)
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer.save(str(ROOT / "qwen3np" / "synth" / "tokenizer.json"), pretty=False)
    print(f"{tokenizer.get_vocab_size()} tokens from {len(texts)} files")


if __name__ == "__main__":
    main()
