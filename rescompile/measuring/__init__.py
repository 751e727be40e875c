"""Time, memory and traffic of engines, and what disturbed the measurement."""
