"""HadaNets as a library: binarize, kernels, network, training, artifact, delta. Imports nothing of the service."""
