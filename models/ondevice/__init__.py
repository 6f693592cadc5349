"""Training where there is neither PyTorch nor memory: signs and scales of a network, on the drone's own computer.

The forward pass runs on the packed kernels that fly. For the backward pass it keeps of each activation its sign, the
straight-through mask and the block scales: about 2 bits and a share of a scale instead of 32 bits.
"""
