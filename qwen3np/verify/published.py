"""Values that the published weights give, with their inputs, a tolerance each, and their sources.

The tolerance is what the precision of the published figure allows: 1e-5 for float32 run again elsewhere, 1e-4
for float32 on unknown hardware, 5e-3 and more for bfloat16, half the last digit where digits are few.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..loading.model_cards import CARD_MODEL, EMBEDDERS, F2LLM_PROMPT, QUERY_PROMPT, RERANKERS, SIZES, Card

CARD_QUERIES = ["What is the capital of China?", "Explain gravity"]
CARD_DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects "
    "and is responsible for the movement of planets around the sun.",
]
# Cosines of each query (with its prompt) with each document, in float32: model card, "Transformers Usage".
CARD_SCORES = [[0.7645568251609802, 0.14142508804798126], [0.13549736142158508, 0.5999549627304077]]

PLANET_QUERY = "Which planet is known as the Red Planet?"
PLANET_DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]


@dataclass(frozen=True)
class Cosines:
    """Cosines [queries, documents] of queries with QUERY_PROMPT and documents without a prompt."""

    queries: list[str]
    documents: list[str]
    scores: list[list[float]]
    tolerance: float
    arithmetic: str
    source: str


@dataclass(frozen=True)
class LeadingValues:
    """The leading values of one text's unit vector."""

    text: str
    query: bool  # with QUERY_PROMPT
    values: list[float]
    tolerance: float
    arithmetic: str
    source: str


@dataclass(frozen=True)
class LogitDifferences:
    """A reranker's logit of "yes" minus that of "no", one per document."""

    query: str
    documents: list[str]
    differences: list[float]
    tolerance: float
    arithmetic: str
    source: str
    probabilities: list[float] = field(default_factory=list)  # of "yes", where these are published too


CARD = "QwenLM/Qwen3-Embedding@f4ad0c4 README.md"
COPY = "the model card's table, from a third-party copy"
FASTEMBED = "qdrant/fastembed@c48247f tests/test_text_onnx_embeddings.py"
TEI = "huggingface/text-embeddings-inference#668"
SENTENCE_TRANSFORMERS = "huggingface/sentence-transformers@cad2119"
RCP_NDCG = "cohere-ai/rcp-ndcg packages/rcp-ndcg-test/cases"

COSINES: dict[str, list[Cosines]] = {
    CARD_MODEL: [
        Cosines(
            CARD_QUERIES,
            CARD_DOCUMENTS,
            CARD_SCORES,
            1e-4,
            "transformers float32",
            f"{CARD} (transformers block)",
        ),
        Cosines(
            CARD_QUERIES,
            CARD_DOCUMENTS,
            [[0.7645565271377563, 0.1414250284433365], [0.1354975402355194, 0.5999548435211182]],
            1e-5,
            "sentence-transformers float32, CPU",
            f"{RCP_NDCG}/qwen3-embedding-0.6b/card-sentence-transformers.yaml",
        ),
        Cosines(
            CARD_QUERIES,
            CARD_DOCUMENTS,
            [[0.7620252966880798, 0.14078938961029053], [0.1358368694782257, 0.6013815999031067]],
            5e-3,
            "vLLM bfloat16",
            f"{CARD} (vLLM block)",
        ),
        Cosines(
            [PLANET_QUERY],
            PLANET_DOCUMENTS,
            [[0.4838, 0.69335, 0.58793, 0.6647]],
            1e-2,
            "sentence-transformers bfloat16",
            f"{SENTENCE_TRANSFORMERS} tests/sentence_transformer/test_pretrained.py",
        ),
    ],
    "Qwen/Qwen3-Embedding-4B": [
        Cosines(
            CARD_QUERIES,
            CARD_DOCUMENTS,
            [[0.7534, 0.1147], [0.0320, 0.6258]],
            2e-3,
            "model card, 4 digits",
            COPY,
        ),
    ],
    "Qwen/Qwen3-Embedding-8B": [
        Cosines(
            CARD_QUERIES,
            CARD_DOCUMENTS,
            [[0.7493, 0.0751], [0.0880, 0.6318]],
            2e-3,
            "model card, 4 digits",
            COPY,
        ),
    ],
}

LEADING_VALUES: dict[str, list[LeadingValues]] = {
    CARD_MODEL: [
        LeadingValues(
            "hello world",
            False,
            [-0.01476084, 0.01723184, -0.01195498, -0.07275258, 0.00281229],
            1e-3,
            "ONNX float32",
            f"{FASTEMBED} CANONICAL_VECTOR_VALUES",
        ),
        LeadingValues(
            "hello world",
            True,
            [-0.01908712, 0.01635596, -0.00356586, -0.03947155, -0.01387356],
            1e-3,
            "ONNX float32",
            f"{FASTEMBED} CANONICAL_QUERY_VECTOR_VALUES",
        ),
        LeadingValues(
            "What is deep learning",
            True,
            [-0.02223216, -0.03601024, 0.00113771, -0.00686499, -0.06645694, 0.00158694, -0.07725021]
            + [0.00305844, -0.06553164, 0.03677994, 0.0354124, -0.06138499, -0.03728273, -0.00090556]
            + [-0.02426221, 0.01999051, -0.08142734, 0.06585632, -0.04620096, -0.04768893],
            1e-3,
            "sentence-transformers float32",
            f"{TEI} (sentence-transformers' output)",
        ),
        LeadingValues(
            "What is deep learning",
            False,
            [-0.010268565, 0.02111612, 0.0018253098, -0.057047583]
            + [-0.06368894, 0.0606237, -0.08970945, 0.028864374],
            3e-3,
            "TEI 1.7.3, GPU",
            f"{TEI} (TEI's output)",
        ),
    ],
}

# With RERANKER_INSTRUCTION.
LOGIT_DIFFERENCES: dict[str, list[LogitDifferences]] = {
    "Qwen/Qwen3-Reranker-0.6B": [
        LogitDifferences(
            PLANET_QUERY,
            PLANET_DOCUMENTS,
            [-3.109297752380371, 7.120389938354492, -0.3787546157836914, 3.541637420654297],
            1e-4,
            "sentence-transformers float32",
            f"{SENTENCE_TRANSFORMERS} tests/cross_encoder/test_model.py",
        ),
        LogitDifferences(
            CARD_QUERIES[0],
            CARD_DOCUMENTS,
            [7.596951, -12.192464],
            1e-3,
            "sentence-transformers float32, CPU",
            f"{RCP_NDCG}/qwen3-reranker-0.6b/card-st-logits.yaml (notes)",
            [0.9994982481002808, 5.068484824732877e-06],
        ),
        LogitDifferences(
            CARD_QUERIES[0],
            CARD_DOCUMENTS,
            [7.625, -11.375],
            1.0,
            "model card, bfloat16",
            f"{RCP_NDCG}/qwen3-reranker-0.6b/card-st-logits.yaml",
        ),
    ],
    "Qwen/Qwen3-Reranker-4B": [
        LogitDifferences(
            CARD_QUERIES[0],
            CARD_DOCUMENTS,
            [6.4375, -14.375],
            1.0,
            "model card, bfloat16",
            f"{RCP_NDCG}/qwen3-reranker-4b/card-st-logits.yaml",
        ),
    ],
    "Qwen/Qwen3-Reranker-8B": [
        LogitDifferences(
            CARD_QUERIES[0],
            CARD_DOCUMENTS,
            [5.0625, -14.25],
            1.0,
            "model card, bfloat16",
            f"{RCP_NDCG}/qwen3-reranker-8b/card-st-logits.yaml",
        ),
    ],
}

# (hidden_size, intermediate_size, num_hidden_layers) -> the published model of that shape.
SHAPES = {sizes[:3]: name for sizes, name in SIZES.items() if name in EMBEDDERS}
RERANKER_SHAPES = {sizes[:3]: name for sizes, name in SIZES.items() if name in RERANKERS}

# (text, whether with QUERY_PROMPT, ids), computed with the published tokenizer.json: that of the 0.6B (sha256
# def76fb0...); that of the 4B and 8B (83cdf8c3...) gives the same.
PROMPT_IDS = [641, 1235, 25, 16246, 264, 3482, 2711, 3239, 11, 17179, 9760, 46769, 429, 4226, 279, 3239, 198]
PROMPT_IDS += [2859]  # "Query"; its colon joins the next word where there is one such token, ":Mizzen"
END_OF_TEXT = 151643
TOKEN_IDS: list[tuple[str, bool, list[int]]] = [
    (CARD_QUERIES[0], True, [*PROMPT_IDS, 25, 3838, 374, 279, 6722, 315, 5616, 30, END_OF_TEXT]),
    (CARD_QUERIES[1], True, [*PROMPT_IDS, 25, 840, 20772, 23249, END_OF_TEXT]),
    (CARD_DOCUMENTS[0], False, [785, 6722, 315, 5616, 374, 26549, 13, END_OF_TEXT]),
    (
        CARD_DOCUMENTS[1],
        False,
        [38409, 374, 264, 5344, 429, 60091, 1378, 12866, 6974, 1817, 1008, 13, 1084, 6696, 4680]
        + [311, 6961, 6171, 323, 374, 8480, 369, 279, 7203, 315, 32875, 2163, 279, 7015, 13, END_OF_TEXT],
    ),
    ("Mizzen", True, [*PROMPT_IDS, 65207, 449, 5679, END_OF_TEXT]),
    ("hello world", False, [14990, 1879, END_OF_TEXT]),
    ("", False, [END_OF_TEXT]),
]
# The same of models whose prompt ends with a space, computed with the tokenizer.json of Qwen3 itself
# (151,936 rows; sha256 aeb13307...).
IDS_OF_PROMPTS = {
    QUERY_PROMPT + " ": PROMPT_IDS,
    F2LLM_PROMPT: [
        641,
        1235,
        25,
        16246,
        264,
        3405,
        11,
        17179,
        46769,
        429,
        646,
        1492,
        4226,
        279,
        3405,
        624,
        2859,
    ],
}
IDS_BEHIND_A_SPACE = {
    CARD_QUERIES[0]: [25, 3555, 374, 279, 6722, 315, 5616, 30],
    CARD_QUERIES[1]: [25, 81917, 23249],
    "Mizzen": [25, 71595, 5679],
}
ENDS = {"<|endoftext|>": END_OF_TEXT, "<|im_end|>": 151645}


def token_ids(card: Card) -> list[tuple[str, bool, list[int]]]:
    """Return TOKEN_IDS as a model of this card has them, without the token at the end."""
    before = IDS_OF_PROMPTS.get(card.query_prompt)
    return [
        (text, is_query, [*before, *IDS_BEHIND_A_SPACE[text]] if before and is_query else ids[:-1])
        for text, is_query, ids in TOKEN_IDS
    ]


# What a reranker reads: (query, document, ids of the body with RERANKER_INSTRUCTION).
YES_NO = (9693, 2152)
SYSTEM_IDS = [151644, 8948, 198, 60256, 3425, 279, 11789, 20027, 279, 8502, 3118, 389, 279, 11361, 323, 279]
SYSTEM_IDS += [758, 1235, 3897, 13, 7036, 429, 279, 4226, 646, 1172, 387, 330, 9693, 1, 476, 330, 2152, 3263]
SYSTEM_IDS += [151645, 198, 151644, 872, 198]
ANSWER_IDS = [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
BODY_IDS = [27, 641, 1235, 26818, 16246, 264, 3482, 2711, 3239, 11, 17179, 9760, 46769, 429, 4226, 279, 3239]
BODY_IDS += [198, 27, 2859, 26818]  # "<", "Query", ">:"
PAIR_IDS: list[tuple[str, str, list[int]]] = [
    (
        CARD_QUERIES[0],
        CARD_DOCUMENTS[0],
        [*BODY_IDS, 3555, 374, 279, 6722, 315, 5616, 5267, 75692, 26818, 576, 6722, 315, 5616, 374, 26549]
        + [13],
    ),
    (
        PLANET_QUERY,
        PLANET_DOCUMENTS[0],
        [*BODY_IDS, 15920, 11580, 374, 3881, 438, 279, 3731, 28835, 5267, 75692, 26818, 48976, 374, 3545]
        + [2598, 9237, 594, 27397, 1576, 315, 1181, 4428, 1379, 323, 36743, 13],
    ),
]
