"""What all engines on NVIDIA GPUs share: the driver, memory, streams, graphs."""
