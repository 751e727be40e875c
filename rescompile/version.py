"""The version, in a module of its own so that packaging and manifests read it without importing anything."""

VERSION = "0.1.0"
