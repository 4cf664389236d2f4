"""Values that the published weights give, from public sources, and the inputs that give them."""

CARD_MODEL = "Qwen/Qwen3-Embedding-0.6B"
CARD_QUERIES = ["What is the capital of China?", "Explain gravity"]
CARD_DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects "
    "and is responsible for the movement of planets around the sun.",
]
# Cosine of each query (with the query prompt) and document; model card, section "Transformers Usage",
# float32.
CARD_SCORES = [[0.7645568251609802, 0.14142508804798126], [0.13549736142158508, 0.5999549627304077]]
