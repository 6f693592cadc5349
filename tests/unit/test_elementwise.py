"""The kernels of training against the NumPy formula and PyTorch's own operators. Needs PyTorch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hadanet-uav[train]'")


from models import binarize as formula  # noqa: E402
from models.training import elementwise  # noqa: E402
from models.training.autograd import NormPReLU, binarize  # noqa: E402

BFLOAT16 = 2.0**-8
"""The largest relative error of rounding to bfloat16."""


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def values(seed, *shape, dtype=torch.bfloat16):
    """Numbers on both sides of the points where the formulas change, and on them: 0, -0, 1, -1."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0])[torch.randint(4, shape, generator=random)]
    return torch.where(torch.rand(shape, generator=random) < 0.3, special, x).to(dtype)


def both_ways(function, x, *more):
    """The value of function(x, *more), and the gradients with respect to all of them, for one random gradient."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, *more)]
    out = function(*inputs)
    out.backward(values(1, *out.shape).to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize("beta", [0, 1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize("width", [1, 2, 33, 160])
def test_binarize_in_bfloat16_is_the_formula_rounded_once(beta, width):
    x, grad = values(0, 50, width), values(1, 50, width)
    out, slope = both_ways(lambda x: binarize(x, beta), x)
    assert out.dtype == slope.dtype == torch.bfloat16
    x, grad = x.double().numpy(), grad.double().numpy()
    np.testing.assert_allclose(out.double().numpy(), formula.binarize(x, beta), rtol=BFLOAT16)
    expected = formula.binarize_backward(x, beta, grad)
    np.testing.assert_allclose(slope.double().numpy(), expected, rtol=BFLOAT16, atol=1e-6)


class InPyTorch(torch.nn.BatchNorm2d):
    """What `NormPReLU` is, by PyTorch's operators."""

    def __init__(self, channels):
        super().__init__(channels)
        self.slope = torch.nn.Parameter(torch.empty(channels))

    def forward(self, x, near=None):
        y = super().forward(x)
        return torch.nn.functional.prelu(y if near is None else y + near, self.slope)


def layer(channels, kind=NormPReLU):
    """One with a value of its own in each channel."""
    norm = kind(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.7, 1.6, channels))
        norm.bias.copy_(torch.linspace(0.6, -0.4, channels))
        norm.slope.copy_(torch.linspace(-0.5, 1.5, channels))
    return norm


def through(norm, x, near, training):
    """What comes out after two batches, all gradients, and the running statistics."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, near) if tensor is not None]
    for mode in (True, training):
        out = norm.train(mode)(*inputs)
    out.backward(values(1, *out.shape).to(out.dtype))
    gradients = [tensor.grad for tensor in (*inputs, norm.weight, norm.bias, norm.slope)]
    return [out.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (3, 20, 5, 7), (2, 20, 8, 8), (128, 192, 1, 1), (2, 65, 3, 3)])
def test_norm_and_prelu_are_those_of_pytorch(shape, shortcut, training, dtype):
    x = (values(0, *shape, dtype=torch.float32) * 3 + torch.linspace(-40, 40, shape[1])[:, None, None]).to(dtype)
    near = values(2, *shape, dtype=dtype) if shortcut else None
    found = through(layer(shape[1]), x.to(memory_format=torch.channels_last), near, training)
    assert [tensor.dtype for tensor in found[:3]] == [dtype] * (3 if shortcut else 2) + [torch.float32] * (not shortcut)
    exact = None if near is None else near.double()
    wanted = through(layer(shape[1], InPyTorch).double(), x.double(), exact, training)
    for got, expected in zip(found, wanted, strict=True):
        size = max(1e-3, expected.abs().double().amax().item())  # a sum, or a difference of such, is as exact as it is
        rounded = 3 * BFLOAT16 if dtype == torch.bfloat16 else 1e-5
        np.testing.assert_allclose(got.double().numpy(), expected.double().numpy(), rtol=rounded, atol=rounded * size)


def test_bfloat16_is_rounded_as_pytorch_rounds_it():
    """At every exponent, at ties, and for what is not a number."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    bits[::3] = bits[::3] & 0xFFFF0000 | 0x8000
    x = torch.from_numpy(bits.view(np.float32))
    out = torch.empty_like(x, dtype=torch.bfloat16)
    for i, value in enumerate(x.numpy()[:2000]):  # without Numba, what the kernels mean
        assert np.uint16(elementwise.narrow(value, np.uint16())) == x[i].bfloat16().view(torch.uint16) or value != value
    same, nothing = np.ones(len(x), np.float32), np.zeros(len(x), np.float32)
    rows = x.numpy()[None], out.view(torch.uint16).numpy()[None]
    elementwise.combine(rows[0], rows[0], rows[1], same, nothing, nothing)
    assert torch.equal(out.nan_to_num(7.0), x.bfloat16().nan_to_num(7.0))
    assert torch.equal(out.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing_but_the_order_of_sums(dtype, monkeypatch):
    monkeypatch.setattr(elementwise, "MIN_PIECE", 100)
    x = values(0, 7, 24, 9, 5, dtype=dtype).to(memory_format=torch.channels_last)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        binary = both_ways(lambda x: binarize(x.permute(0, 2, 3, 1), 2), x)
        results.append((binary, through(layer(24), x, x, training=True)))
    for one, three in zip(*(binary for binary, _ in results), strict=True):
        assert torch.equal(one, three)
    for one, three in zip(*(found for _, found in results), strict=True):
        rounded = BFLOAT16 if one.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(one, three, rtol=rounded, atol=rounded)


def test_no_rows_are_nothing():
    assert binarize(torch.empty(0, 8), 2).shape == (0, 8)
    assert layer(3).eval()(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


def test_what_is_not_finite_stays_so():
    """A loss that diverges must be seen, not hidden by a kernel."""
    for dtype in elementwise.DTYPES:
        x = torch.tensor([[float("nan"), 1.0, float("inf"), 1.0]], dtype=dtype)
        assert not binarize(x, 2).isfinite().any()
        found = layer(4).eval()(x.view(1, 4, 1, 1)).flatten()
        assert torch.equal(found.isfinite(), torch.tensor([False, True, False, True]))
