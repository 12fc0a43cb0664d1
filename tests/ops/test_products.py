"""Large products by oneDNN: as torch's own, with gradients, and a way back where torch has no such function."""

import pytest
import torch
from torch.nn import functional

from fastweights.ops import products
from tolerances import assert_near

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SIZES = [((64, 256), 200, True), ((5, 40, 96), 130, False), ((3, 300, 32), 97, True)]  # of x, outputs, with a bias


@pytest.fixture(params=["onednn", "torch"])
def library(request, monkeypatch):
    if request.param == "onednn" and not products.has_onednn():
        pytest.skip("this torch has no oneDNN")
    calls, function = [], products.onednn_linear

    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(products, "onednn_linear", counted)
    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param == "onednn")
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 1)
    yield request.param
    assert bool(calls) == (request.param == "onednn")


@needs_onednn
def test_torch_still_has_the_function_that_is_not_public():
    x, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    assert_near(products.onednn_linear(x, weight, bias), functional.linear(x, weight, bias), "product", 1e-5)


@pytest.mark.parametrize(("shape", "outputs", "bias"), SIZES)
def test_a_layer_and_its_gradients_are_torchs(library, shape, outputs, bias):
    x = torch.randn(shape, requires_grad=True)
    layer = products.Linear(shape[-1], outputs, bias=bias)
    inputs, gradient = [x, *layer.parameters()], torch.randn(*shape[:-1], outputs)
    expected = functional.linear(x, layer.weight, layer.bias)
    found = layer(x)
    assert_near(found, expected, "outputs", 1e-5)
    pairs = zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    )
    for one, other in pairs:
        assert_near(one, other, "gradient", 1e-5)


def test_second_derivatives(library):
    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    found = []
    for layer in (products.linear, functional.linear):
        first = torch.autograd.grad(layer(x, weight).square().sum(), (x, weight), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight)))
    for one, other in zip(*found, strict=True):
        assert_near(one, other, "second derivative", 1e-5)


def test_the_gradient_of_a_weight(library, monkeypatch):
    monkeypatch.setattr(products, "LEAST_SIDE", 1)
    with torch.no_grad():
        found = products.weight_gradient(torch.ones(3, 50, 40), torch.ones(3, 50, 7))
    assert torch.equal(found, torch.full((40, 7), 150.0))
    gradient, x = torch.randn(3, 50, 40), torch.randn(3, 50, 9)[..., :7]
    expected = torch.einsum("btn,btk->nk", gradient, x)
    assert_near(products.weight_gradient(gradient, x), expected, "gradient", 1e-5)
    assert_near(products.weight_gradient(gradient, x, bfloat16=True), expected, "gradient", 1e-2)


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, 2000, dtype=torch.float64), torch.ones(3, 2), torch.ones(3, 2001)[:, :2000]],
    ids=["double", "small", "apart"],
)
def test_other_dtypes_small_products_and_rows_apart_are_torchs(x, monkeypatch):
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 1000)
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "onednn_linear", lambda *_: pytest.fail("it was called"))
    weight = torch.ones(100, x.shape[-1], dtype=x.dtype)
    assert torch.equal(products.linear(x, weight), x @ weight.T)


def test_doctor_says_which_library_multiplies():
    assert products.library().startswith(("oneDNN", "MKL", "torch's"))
