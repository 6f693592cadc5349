"""Table 1, how much smaller a network gets, and an estimate of its energy from the figures of section 4."""

from typing import Any, NamedTuple

from models.network import NetworkSpec
from models.paper.report import Row

FLOAT_BITS = 32
BETA_W = 16
PAPER = {"AlexNet": 6.51, "ResNet-18": 7.43}

DRAM_PJ, SRAM_PJ, ADD_PJ, MULTIPLY_PJ = 640.0, 5.0, 0.9, 3.7
"""Section 4, at 45 nm: 32 bits from DRAM, from SRAM; a float addition, a float multiplication."""


class Layer(NamedTuple):
    """weights: of a convolution or dense layer; others: its bias and BatchNorm parameters; inner: not first or last."""

    weights: int
    channels: int
    others: int
    inner: bool = True


def _conv(c_in: int, c_out: int, kernel: int, others: int, inner: bool = True) -> Layer:
    return Layer(c_in * c_out * kernel * kernel, c_out, others * c_out, inner)


def resnet18(others: int) -> list[Layer]:
    """ResNet-18 with 1x1 convolutions in three shortcuts; others: parameters counted besides weights, a channel."""
    layers, c_in = [_conv(3, 64, 7, others, False)], 64
    for c_out in (64, 128, 256, 512):
        layers += [_conv(c_in, c_out, 3, others), *[_conv(c_out, c_out, 3, others)] * 3]
        if c_in != c_out:
            layers.append(_conv(c_in, c_out, 1, others))
        c_in = c_out
    return [*layers, Layer(512 * 1000, 1000, 1000, False)]


def alexnet(convolutions: tuple[tuple[int, int, int], ...], side: int, others: int) -> list[Layer]:
    """AlexNet from its convolutions (inputs, outputs, kernel); side: of the last map; others: as in `resnet18`."""
    layers = [_conv(*convolution, others, i > 0) for i, convolution in enumerate(convolutions)]
    flat = convolutions[-1][1] * side * side
    dense = [Layer(flat * 4096, 4096, 4096 * others), Layer(4096 * 4096, 4096, 4096 * others)]
    return [*layers, *dense, Layer(4096 * 1000, 1000, 1000, False)]


ALEXNET = (3, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)
SMALL_ALEXNET = (3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)
NETWORKS: tuple[tuple[str, str, list[Layer]], ...] = (
    ("AlexNet", "96-256-384-384-256, weights alone", alexnet(ALEXNET, 6, 0)),
    ("AlexNet", "the same, with BatchNorm", alexnet(ALEXNET, 6, 2)),
    ("AlexNet", "64-192-384-256-256, weights and biases", alexnet(SMALL_ALEXNET, 6, 1)),
    ("ResNet-18", "weights alone", resnet18(0)),
    ("ResNet-18", "the same, with BatchNorm", resnet18(2)),
)


def paper_bits(layers: list[Layer], beta_w: int = BETA_W) -> float:
    """Bits as the paper counts: inner weights 1 bit and a float scale for each beta_w of them, all else floats."""
    inner = sum(layer.weights for layer in layers if layer.inner)
    rest = sum(layer.others + layer.weights * (not layer.inner) for layer in layers)
    return inner * (1 + FLOAT_BITS / beta_w) + rest * FLOAT_BITS


def flown_bits(layers: list[Layer], beta_w: int = BETA_W) -> float:
    """Bits of the artifacts here: block scales in 8 bits times a float a channel, first and last layer in 8 bits."""
    inner = sum(layer.weights for layer in layers if layer.inner)
    ends = sum(layer.weights for layer in layers if not layer.inner)
    floats = sum(layer.others + layer.channels for layer in layers)
    return inner * (1 + 8 / beta_w) + ends * 8 + floats * FLOAT_BITS


def table1() -> list[Row]:
    """How many times smaller than floats: the paper's figure, ours counted alike, ours with 8-bit scales and ends."""
    rows: list[Row] = []
    for name, counted, layers in NETWORKS:
        whole = FLOAT_BITS * sum(layer.weights + layer.others for layer in layers)
        rows.append(
            {
                "network": name,
                "counted": counted,
                "parameters": sum(layer.weights + layer.others for layer in layers),
                "paper": PAPER[name],
                "float_scales_and_ends": whole / paper_bits(layers),
                "int8_scales_and_ends": whole / flown_bits(layers),
            }
        )
    return rows


class Work(NamedTuple):
    """Of one image: weights, products, values between layers, of the inner layers and of the first and last."""

    weights: int
    products: int
    end_weights: int
    end_products: int
    values: int


def work(spec: NetworkSpec, classes: int) -> Work:
    """What a network of the project does for one image."""
    sides = spec.sides()
    size = spec.input_size + 2 * spec.stem.padding
    stem_side = (size - spec.stem.kernel) // spec.stem.stride + 1
    stem = 3 * spec.stem.kernel**2 * spec.stem.channels
    weights = products = 0
    values = stem_side**2 * spec.stem.channels
    for block, c_in, side in zip(spec.blocks, spec.block_inputs(), sides, strict=False):
        own = block.kernel**2 * c_in * block.channels
        out = (side + 2 * block.padding - block.kernel) // block.stride + 1
        weights, products, values = weights + own, products + own * out * out, values + block.channels * out * out
    head = classes * spec.feature_count
    return Work(weights, products, stem + head, stem * stem_side**2 + head, values)


def energy(spec: NetworkSpec, classes: int) -> dict[str, Any]:
    """Estimated microjoules of one image, float and binary, from section 4's figures alone.

    Weights come from DRAM once, values between layers go to SRAM and back, a float product is a multiplication and an
    addition. 32 binary products count as one addition, which is too much for an xor and a bit count, and each block
    of beta_w weights at an output pixel as one multiplication and one addition, which is what its scale costs.
    """
    own = work(spec, classes)
    ends = own.end_weights * DRAM_PJ + own.end_products * (ADD_PJ + MULTIPLY_PJ)
    floats = own.weights * DRAM_PJ + own.products * (ADD_PJ + MULTIPLY_PJ) + 2 * own.values * SRAM_PJ
    weight_bits = scales = activation_bits = 0.0
    for block, c_in, side in zip(spec.blocks, spec.block_inputs(), spec.sides(), strict=False):
        entries = block.kernel**2 * c_in
        beta_w, beta_a = block.beta_w or entries, block.beta_a or c_in
        out = (side + 2 * block.padding - block.kernel) // block.stride + 1
        weight_bits += entries * block.channels * (1 + FLOAT_BITS / beta_w)
        scales += entries * block.channels * out * out / beta_w
        activation_bits += side * side * c_in * (1 + FLOAT_BITS / beta_a)
    binary = (
        weight_bits / 32 * DRAM_PJ
        + own.products / 32 * ADD_PJ
        + scales * (ADD_PJ + MULTIPLY_PJ)
        + 2 * activation_bits / 32 * SRAM_PJ
    )
    return {
        "network": spec.name,
        "products": own.products + own.end_products,
        "float_uJ": (floats + ends) * 1e-6,
        "binary_uJ": (binary + ends) * 1e-6,
        "ratio": (floats + ends) / (binary + ends),
        "ends_share_of_binary": ends / (binary + ends),
    }
