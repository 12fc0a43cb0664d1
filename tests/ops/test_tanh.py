"""The quick tanh against torch's own, in wider numbers."""

import pytest
import torch

from fastweights.ops.tanh import tanh, tanh_


def test_it_is_tanh_to_float32():
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-30, 1e30, -1e30])])
    torch.testing.assert_close(tanh(x).double(), x.double().tanh(), rtol=0, atol=2e-7)
    assert tanh(torch.tensor([torch.inf, -torch.inf])).tolist() == [1, -1]
    assert tanh(torch.tensor(torch.nan)).isnan()


def test_its_input_stays_as_it_is():
    x = torch.randn(5, 7)
    before = x.clone()
    tanh(x[:, 1:])
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_in_place_it_gives_the_same_bits(dtype):
    x = torch.randn(100, dtype=dtype)
    expected = tanh(x)
    assert tanh_(x) is x and torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_to_torch(dtype):
    x = torch.randn(100, dtype=dtype)
    assert torch.equal(tanh(x), x.tanh())


def test_gradients():
    x = torch.linspace(-9, 9, 1001, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    (own,) = torch.autograd.grad(tanh(x).sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(wide.tanh().sum(), wide, create_graph=True)
    torch.testing.assert_close(own.double(), wanted, rtol=0, atol=5e-7)
    (own,), (wanted,) = torch.autograd.grad(own.sum(), x), torch.autograd.grad(wanted.sum(), wide)
    torch.testing.assert_close(own.double(), wanted, rtol=0, atol=1e-6)
