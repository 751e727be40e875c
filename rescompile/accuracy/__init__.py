"""How far an engine is from its reference, and in which blocks."""
