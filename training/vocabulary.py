"""The tokenizer: the published models' pre-tokenizer and byte-level BPE, with a vocabulary of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from pairs import Pair
from teacher import Teacher
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from qwen3np.loading.model_cards import QUERY_PROMPT
from qwen3np.loading.pieces import SPLIT

SIZE = 8192
END = "<|endoftext|>"
SPECIAL = [END, "<|im_start|>", "<|im_end|>"]


def train(pairs: list[Pair], path: Path) -> None:
    """Learn a vocabulary from the pairs and write tokenizer.json.

    The texts are in lower case, as the model reads them (do_lower_case): the teacher does not know case, and
    a word's two spellings would be two rows of a small table. Queries are learned with their instruction:
    ":what" is one piece there.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for p in pairs if not p.held_out for text in (QUERY_PROMPT + p.query, p.document))
    tokenizer.train_from_iterator((text.lower() for text in texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, end)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(path))


def meanings(path: Path, teacher: Teacher) -> NDArray[np.float32]:
    """Return the teacher's vector of each token read as a text: where the token's embedding begins."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return teacher.encode([tokenizer.decode([i]).strip() for i in range(tokenizer.get_vocab_size())])
