"""The options that several commands share, in the groups of the configuration."""

from rescompile.cli.options.calibration import CalibrationOptions
from rescompile.cli.options.engine import EngineOptions
from rescompile.cli.options.network import NetworkOptions, model_config
from rescompile.cli.options.preprocessing import PreprocessingOptions, parse_size
from rescompile.cli.options.shared import Directory, Json, SkipUnreadable, TrustedKeys
from rescompile.cli.options.verdict import VerdictOptions

__all__ = [
    "CalibrationOptions",
    "Directory",
    "EngineOptions",
    "Json",
    "NetworkOptions",
    "PreprocessingOptions",
    "SkipUnreadable",
    "TrustedKeys",
    "VerdictOptions",
    "model_config",
    "parse_size",
]
