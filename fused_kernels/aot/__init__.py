"""Compiling every kernel with every tile for every GPU that is supported, on a machine that has none."""
