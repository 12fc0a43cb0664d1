import torch

from fastweights.ops.locked_dropout import locked_dropout


def test_a_mask_is_for_all_steps_of_a_row():
    """Merity et al.'s definition, with the same random numbers."""
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    torch.manual_seed(1)
    y = locked_dropout(x, 0.4)
    torch.manual_seed(1)
    mask = torch.empty(3, 1, 5, dtype=torch.float64).bernoulli_(1 - 0.4) / (1 - 0.4)
    assert torch.equal(y, x * mask)
    assert 0 < (mask == 0).sum() < mask.numel() and not torch.equal(mask[0], mask[1])


def test_nothing_is_dropped_outside_training_or_without_a_probability():
    x = torch.randn(3, 7, 5)
    assert torch.equal(locked_dropout(x, 0.4, training=False), x)
    assert torch.equal(locked_dropout(x, 0.0), x)


def test_the_order_in_memory_stays():
    """Cores give their outputs time-major, and the next layer multiplies them so."""
    x = torch.randn(7, 3, 5, requires_grad=True)
    y = locked_dropout(x.transpose(0, 1), 0.4)
    assert y.transpose(0, 1).is_contiguous()
    (gradient,) = torch.autograd.grad(y, x, torch.ones(7, 3, 5).transpose(0, 1))
    assert gradient.is_contiguous()
