"""The fused operations on tensors: each validates, chooses a tile and launches, or calls its reference."""
