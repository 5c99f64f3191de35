"""From PyTorch weights to a bundle: ONNX graphs with the ops as functions, checked against the model they came from."""
