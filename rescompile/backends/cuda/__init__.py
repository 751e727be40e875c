"""What every engine on an NVIDIA GPU shares: the driver, the devices, requests that run side by side, shared images."""
