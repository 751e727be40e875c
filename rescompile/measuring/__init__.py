"""Time and memory of engines, and disturbances of the measurement."""
