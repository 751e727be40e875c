"""Our own networks as torch modules; the registry makes them by name."""
