"""What a model is shown: the rendered world with ground truth, and readers for real images and benchmarks."""
