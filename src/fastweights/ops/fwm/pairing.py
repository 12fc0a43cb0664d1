"""How two keys form one address: the tensor product of the paper, or the concatenation of its ablation (appendix E).

The memory is used as a matrix `[B, K, V]` from addresses to values. All that the chunkwise form needs to know about an
address is here. a and b are the two halves of addresses, `[B, P, S]` and `[B, P, R]`. `similarities` are the inner
products of the halves of two sets of addresses, `[B, P, Q]` each; `combine` makes those of the addresses of them.
"""

import torch
from torch import Tensor

Similarities = tuple[Tensor, Tensor]


def similarities(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Similarities:
    """Inner products of a with c and of b with d, `[B, P, Q]` each."""
    return a @ c.mT, b @ d.mT


class TensorProduct:
    """address = vec(a ⊗ b), K = S·R."""

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        """The addresses `[B, P, K]`."""
        return (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)

    @staticmethod
    def join_into(target: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The same, written to its place."""
        torch.mul(a.unsqueeze(-1), b.unsqueeze(-2), out=target.unflatten(-1, (a.shape[-1], b.shape[-1])))
        return target

    @staticmethod
    def combine(halves: Similarities) -> Tensor:
        """Inner products of addresses from those of their halves."""
        return halves[0] * halves[1]

    @staticmethod
    def pull(weights: Tensor, halves: Similarities, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a and b where Σ_q weights[p, q]·(c_q, d_q) is the gradient of address p."""
        return (weights * halves[1]) @ c, (weights * halves[0]) @ d

    @staticmethod
    def split(gradient: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a and b from the gradient `[B, P, K]` of their address, which is overwritten."""
        matrix = gradient.unflatten(-1, (a.shape[-1], b.shape[-1]))
        d_b = (a.unsqueeze(-2) @ matrix).squeeze(-2)
        # the sum over products beats a matrix product with one column
        return matrix.mul_(b.unsqueeze(-2)).sum(-1), d_b


class Concatenation:
    """address = [a; b], K = S + R."""

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        """The addresses `[B, P, K]`."""
        return torch.cat([a, b], -1)

    @staticmethod
    def join_into(target: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The same, written to its place."""
        return target.copy_(torch.cat([a, b], -1))

    @staticmethod
    def combine(halves: Similarities) -> Tensor:
        """Inner products of addresses from those of their halves."""
        return halves[0] + halves[1]

    @staticmethod
    def pull(weights: Tensor, halves: Similarities, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a and b where Σ_q weights[p, q]·(c_q, d_q) is the gradient of address p."""
        return weights @ c, weights @ d

    @staticmethod
    def split(gradient: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a and b from the gradient `[B, P, K]` of their address, which is overwritten."""
        return gradient[..., : a.shape[-1]], gradient[..., a.shape[-1] :]


PAIRINGS: dict[str, type[TensorProduct | Concatenation]] = {"product": TensorProduct, "concatenation": Concatenation}


def empty_memory(first_keys: Tensor, second_keys: Tensor, values: Tensor, pairing: str) -> Tensor:
    """F = 0, `[B, K, V]`."""
    K = PAIRINGS[pairing].join(first_keys[:, 0], second_keys[:, 0]).shape[-1]
    return values.new_zeros(values.shape[0], K, values.shape[-1])
