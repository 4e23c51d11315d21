"""What is measured: time and memory of models, layers and training steps, each beside a rival."""
