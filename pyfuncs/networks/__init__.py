"""Networks: encoders of images (torch) and their training, and models in the ONNX format."""
