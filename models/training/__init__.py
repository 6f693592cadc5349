"""Offline training with PyTorch (the extra `train`): recipes, data, layers, the loop. Nothing here flies."""
