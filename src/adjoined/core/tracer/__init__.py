"""Recording a model's ATen operators on meta tensors, at a symbolic batch size."""
