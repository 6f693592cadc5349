"""Models in and out: networks as standard ONNX operators, and float ONNX networks as HadaNets (the extra `onnx`)."""
