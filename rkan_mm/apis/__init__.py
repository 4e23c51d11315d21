"""What runs: training, testing, inference and the demo, and the conversion of checkpoints."""
