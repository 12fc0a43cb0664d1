"""Fast weights as a decaying sum of outer products, A_t = λ A_{t−1} + η k_t k_tᵀ (Ba et al. 2016, eq. 1).

They are not formed at each step: what A_t gives for a query is a weighted sum of the keys so far. README.md derives it.
"""


def chunk_length(length: int, size: int) -> int:
    """After how many steps A `[size, size]` is formed and carried on, in a sequence of `length` steps.

    A short sequence is one chunk: A is formed at its end alone. A longer one is cut so that neither the keys that each
    read looks through nor the memory of a step grow with the length: the A's that the gradient needs (one a chunk) take
    no more room than the keys.

    >>> chunk_length(19, size=50), chunk_length(1000, size=50), chunk_length(1000, size=512)
    (19, 64, 512)
    """
    return min(length, max(64, size))
