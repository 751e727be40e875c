"""Errors that a user can mend, with their exit codes.

    RescompileError            exit 1: the user can mend it; the message says what, where and what to do
    ├── UsageError             exit 2: options that contradict each other or name something unknown
    ├── CheckpointError        weights that cannot be read, or that belong to another network
    ├── DownloadError          published weights that could not be fetched or do not have their hash
    ├── GraphError             an ONNX graph that is not a ResNet that rescompile understands
    │   └── LintError          a deployable graph that breaks the fusion contract
    ├── BackendError           an engine that could not be built or run
    │   └── BackendUnavailable a library or a device that this machine does not have
    ├── EngineError            an engine directory that is damaged, incomplete or of another format
    ├── DataError              images to train on that are missing, damaged or do not fit the network
    ├── TrainingError          a training that cannot go on: its loss is not a number, or the folder has another run
    └── OutputError            a result that could not be written (full disk, no permission, exists already)

    calibration.errors.CalibrationError   exit 1: image sets and calibration tables (their package stands alone)

Any other exception is a defect of rescompile and keeps its traceback.
"""

from __future__ import annotations

from calibration.errors import CalibrationError


class RescompileError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1


class UsageError(RescompileError):
    """The options contradict each other or name something unknown."""

    exit_code = 2


class CheckpointError(RescompileError):
    """The weights cannot be read, or belong to another network."""


class DownloadError(RescompileError):
    """Published weights could not be fetched, or do not have the published hash."""


class GraphError(RescompileError):
    """The ONNX graph is not a ResNet that rescompile understands."""


class LintError(GraphError):
    """The deployable graph breaks a rule of the fusion contract."""


class BackendError(RescompileError):
    """The engine could not be built or run."""


class BackendUnavailable(BackendError):
    """The backend needs a library or a device that this machine does not have."""


class EngineError(RescompileError):
    """The engine directory is damaged, incomplete or of another format."""


class DataError(RescompileError):
    """The images to train on are missing, damaged or do not fit the network."""


class TrainingError(RescompileError):
    """The training cannot go on."""


class OutputError(RescompileError):
    """A result could not be written."""


USER_ERRORS: tuple[type[Exception], ...] = (RescompileError, CalibrationError)
"""Errors that the command line prints as one sentence instead of a traceback."""


def did_you_mean(word: str, known: list[str]) -> str:
    """``" Did you mean 'openvino'?"`` or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def reason_of(error: Exception) -> str:
    """The reason alone: an OSError's own text repeats the path and begins with a number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
