"""The version. Packaging and manifests read it from here, because this module imports nothing."""

VERSION = "0.2.0"
