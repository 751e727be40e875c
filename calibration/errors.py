"""Errors of image sets and calibration tables; each message says what is wrong, where and what to do.

CalibrationError
├── ImageSetError      a folder, archive or image that cannot be used
├── TableError         a calibration table that is damaged or belongs to something else
└── UnknownOperation   an operation that only ONNX Runtime executes
"""

from __future__ import annotations


class CalibrationError(Exception):
    """Base class of all errors here; the user can fix each of them."""

    exit_code = 1


class ImageSetError(CalibrationError):
    """An image set, or one image of it, cannot be used."""


class TableError(CalibrationError):
    """A calibration table is damaged, or was made for something else."""


class UnknownOperation(CalibrationError):
    """A method needs gradients or single layers, and the graph has an operation that only ONNX Runtime executes."""

    def __init__(self, node: str, op: str, use: str = "") -> None:
        with_use = f"{op} with {use}" if use else op
        self.problem = f"'{node}' is a {with_use}, which only ONNX Runtime executes here"
        super().__init__(f"{self.problem}: use --effort fast")
