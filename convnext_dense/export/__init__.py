"""Export: a trained model as one graph for onnxruntime, OpenVINO or PyTorch, with proof that it predicts the same."""

from convnext_dense.export.write import export
