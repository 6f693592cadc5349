"""The on-device trainer: gradients against PyTorch and finite differences, and training that learns."""

import numpy as np
import pytest

from models.engine import Engine
from models.model import Model
from models.network import Block, NetworkSpec, Pool, Stem
from models.ondevice.convolution import fold, unfold
from models.ondevice.pooling import pool_backward, pool_forward
from models.ondevice.trainer import OnDevice
from tests import reference
from tests.training_data import texture

CLASSES = ("a", "b", "c")
SPECS = {
    "plain": NetworkSpec(
        name="plain",
        input_size=12,
        mean=(100, 110, 120),
        stem=Stem(channels=8, stride=1),
        blocks=(
            Block(channels=12, beta_w=16, beta_a=0, shortcut=0, pool=Pool(size=3, stride=2, padding=1)),
            Block(channels=9, beta_w=8, beta_a=5, shortcut=0, pool=Pool(kind="mean")),
            Block(channels=20, kernel=3, valid=True, beta_w=0, beta_a=4, shortcut=0),
            Block(channels=11, kernel=1, beta_w=4, beta_a=0, shortcut=0),
        ),
        taps=(3,),
        deviation=False,
        beta_f=1,
    ),
    "residual": NetworkSpec(
        name="residual",
        input_size=16,
        mean=(100, 110, 120),
        stem=Stem(channels=8, stride=2),
        blocks=(
            Block(channels=12, beta_w=8, beta_a=0),
            Block(channels=20, stride=2, beta_w=16, beta_a=6),
            Block(channels=20, beta_w=24, beta_a=0),
        ),
        taps=(0, 2),
        beta_f=4,
    ),
}
ALL = pytest.mark.parametrize("name", SPECS)


def model_of(spec, seed=0):
    """Random; the largest scale of each channel is 127, so that its weights stay what they are when packed again."""
    tensors = reference.random_tensors(np.random.default_rng(seed), spec, len(CLASSES))
    tensors["stem.weight"][:, 0, 0, 0] = 127
    for i in range(len(spec.blocks)):
        tensors[f"block{i}.q"][:, 0] = 127
    return Model(spec, tensors, CLASSES)


def tiles_of(spec, count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, spec.input_size, spec.input_size, 3), np.uint8)


@ALL
def test_gradients_equal_pytorchs(name):
    """Through the layers of offline training, BatchNorm as it is in flight; latent weights on the grid that flies."""
    torch = pytest.importorskip("torch", reason="the comparison needs the extra train")
    from models.training.canonical import restored

    spec = SPECS[name]
    model, tiles, labels = model_of(spec), tiles_of(spec, 6), np.array([0, 1, 2, 0, 1, 2])
    device = OnDevice(model, kept=np.float32)
    net = restored(model)
    rgb = torch.from_numpy(np.ascontiguousarray(tiles[..., ::-1]).astype(np.float32)).permute(0, 3, 1, 2)
    logits = net(rgb)
    np.testing.assert_allclose(device.logits(tiles), logits.detach().numpy(), rtol=1e-3, atol=1e-3)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    found = device.gradients(tiles, labels)
    want = {"head.weight": net.head.weight.grad, "head.bias": net.head.bias.grad}
    for i, block in enumerate(net.blocks):
        want[f"block{i}.weight"] = block.weight.grad.flatten(1)
        want[f"block{i}.in_shift"], want[f"block{i}.slope"] = block.in_shift.grad, block.norm.slope.grad
        want[f"block{i}.scale"] = block.norm.weight.grad * (1 + block.norm.eps) ** 0.5
        want[f"block{i}.shift"] = block.norm.bias.grad
    assert found.keys() == want.keys()
    for key, grad in want.items():
        grad = grad.numpy()
        assert np.abs(grad).max() > 0, key
        np.testing.assert_allclose(found[key], grad, rtol=2e-3, atol=2e-4 * np.abs(grad).max(), err_msg=key)


@ALL
def test_gradients_of_what_is_smooth_equal_finite_differences(name):
    """The last block's scale, shift and slope and the head: behind them nothing is binarized but the features."""
    spec = SPECS[name]
    model, tiles, labels = model_of(spec), tiles_of(spec, 5), np.array([0, 1, 2, 0, 1])
    device = OnDevice(model, kept=np.float32)
    found = device.gradients(tiles, labels)

    def loss():
        logits = device.logits(tiles).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        return -np.mean(logits[np.arange(5), labels] - np.log(np.exp(logits).sum(1)))

    last = len(spec.blocks) - 1
    places = {"head.weight": device.head, "head.bias": device.bias}
    if spec.beta_f == 1:
        places |= {f"block{last}.{n}": device.small[last][n] for n in ("scale", "shift", "slope")}
    for key, x in places.items():
        for place in list(np.ndindex(x.shape))[::7]:
            before, h = x[place], 1e-2
            x[place] = before + h
            up = loss()
            x[place] = before - h
            down = loss()
            x[place] = before
            slope = (up - down) / (2 * h)
            assert found[key][place] == pytest.approx(slope, rel=0.03, abs=2e-4), (key, place)


def test_unfolding_and_folding_are_transposes():
    rng = np.random.default_rng(0)
    for block in (Block(channels=1, stride=2), Block(channels=1, kernel=5, valid=True), Block(channels=1, kernel=1)):
        x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
        columns = unfold(x, block)
        y = rng.normal(size=columns.shape).astype(np.float32)
        assert np.vdot(columns, y) == pytest.approx(np.vdot(x, fold(y, block, x.shape)), rel=1e-4)


@pytest.mark.parametrize(
    "pool",
    [Pool(), Pool(size=3, stride=2, padding=1), Pool(kind="mean", size=3, stride=1), Pool(kind="mean", padding=1)],
)
def test_pools_and_their_gradients(pool):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 7, 3)).astype(np.float32)
    y, place = pool_forward(x, pool)
    np.testing.assert_allclose(y, reference.pool(x, pool), rtol=1e-5, atol=1e-6)
    grad = rng.normal(size=y.shape).astype(np.float32)
    back = pool_backward(grad, place, pool, 7)
    for index in list(np.ndindex(x.shape))[::11]:
        moved = x.astype(np.float64)
        moved[index] += 1e-5
        slope = (grad * (reference.pool(moved, pool) - reference.pool(x.astype(np.float64), pool))).sum() / 1e-5
        assert back[index] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_it_learns_and_what_it_learned_flies():
    spec = NetworkSpec(
        name="tiny",
        input_size=32,
        mean=(110, 110, 110),
        stem=Stem(channels=16),
        blocks=(Block(channels=32, stride=2), Block(channels=32)),
        taps=(0, 1),
        beta_f=4,
    )
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 3
    tiles = np.stack([texture(label, rng) for label in labels])
    model = Model(spec, reference.random_tensors(np.random.default_rng(3), spec, 3), CLASSES)
    before = model.hash
    device = OnDevice(model)
    losses = [device.step(tiles, labels, rate=0.02) for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    trained = device.trained()
    assert trained.hash != before == model.hash
    flipped = [np.unpackbits(trained.tensors[n] ^ model.tensors[n]).sum() for n in model.tensors if n.endswith(".bits")]
    assert all(count > 0 for count in flipped)
    engine = Engine(trained)
    flown, own = engine.logits(engine.features(tiles)).argmax(1), device.logits(tiles).argmax(1)
    assert (flown == own).mean() > 0.95
    assert (flown == labels).mean() > 0.8


def test_the_same_steps_give_the_same_model():
    spec = SPECS["residual"]
    tiles, labels = tiles_of(spec, 9), np.arange(9) % 3
    hashes = set()
    for _ in range(2):
        device = OnDevice(model_of(spec))
        for _ in range(3):
            device.step(tiles, labels)
        hashes.add(device.trained().hash)
    assert len(hashes) == 1


def test_a_step_of_no_length_changes_nothing():
    device = OnDevice(model_of(SPECS["plain"]))
    before = device.trained().hash
    device.step(tiles_of(SPECS["plain"], 4), np.array([0, 1, 2, 0]), rate=0.0)
    assert device.trained().hash == before


@ALL
def test_the_last_blocks_alone_have_the_gradients_that_they_have_among_all(name):
    spec = SPECS[name]
    model, tiles, labels = model_of(spec), tiles_of(spec, 6), np.array([0, 1, 2, 0, 1, 2])
    whole = OnDevice(model, kept=np.float32).gradients(tiles, labels)
    for first in range(1, len(spec.blocks) + 1):
        part = OnDevice(model, kept=np.float32, first=first)
        found = part.gradients(tiles, labels)
        own = {key for key in whole if not key.startswith("block") or int(key[5 : key.index(".")]) >= first}
        assert found.keys() == own
        for key in own:
            np.testing.assert_allclose(found[key], whole[key], rtol=1e-4, atol=1e-5, err_msg=key)
        kept = part.frozen(tiles)  # half floats, which may turn a sign or two
        np.testing.assert_allclose(part.logits(kept), part.logits(tiles), rtol=0.02, atol=0.02)
        before = {n: x for n, x in part.trained().tensors.items() if not n.startswith("head.")}
        part.step(kept, labels, rate=0.05)
        for key, tensor in part.trained().tensors.items():
            if key.startswith(("stem.", "features.")) or (key[:5] == "block" and int(key[5 : key.index(".")]) < first):
                assert (tensor == model.tensors[key]).all(), key  # to the bit
        changed = [key for key, x in part.trained().tensors.items() if key in before and (x != before[key]).any()]
        assert bool(changed) == (first < len(spec.blocks))


def test_scales_are_learned_and_no_sign_turns():
    spec = SPECS["residual"]
    model, tiles, labels = model_of(spec), tiles_of(spec, 12), np.arange(12) % 3
    device = OnDevice(model, scope="scales")
    losses = [device.step(tiles, labels, rate=0.05) for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:3])
    trained = device.trained()
    for i in range(len(spec.blocks)):
        assert (trained.tensors[f"block{i}.bits"] == model.tensors[f"block{i}.bits"]).all()
        assert (trained.tensors[f"block{i}.q"] != model.tensors[f"block{i}.q"]).any()
        assert (trained.tensors[f"block{i}.scale"] != model.tensors[f"block{i}.scale"]).any()


def test_what_is_not_trained_here_is_refused():
    spec = SPECS["plain"]
    far = NetworkSpec(
        name="far",
        input_size=8,
        mean=spec.mean,
        stem=spec.stem,
        blocks=(Block(channels=8, shortcut=0), Block(channels=8, shortcut=2)),
        taps=(1,),
    )
    with pytest.raises(ValueError, match="around several blocks"):
        OnDevice(model_of(far))
    whole = NetworkSpec(
        name="whole", input_size=8, mean=spec.mean, stem=spec.stem, blocks=(Block(channels=8, beta_a=1),), taps=(0,)
    )
    with pytest.raises(ValueError, match="full precision"):
        OnDevice(model_of(whole))
