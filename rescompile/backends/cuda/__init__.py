"""Shared parts of engines on an NVIDIA GPU: driver, devices, requests that run side by side, imported images."""
