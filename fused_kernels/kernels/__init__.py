"""The Triton kernels, imported when one is launched or compiled, so that Triton stays optional."""
