"""Errors of image sets and calibration tables; each message says what is wrong, where and what to do.

CalibrationError
├── ImageSetError   a folder, archive or image that cannot be used
└── TableError      a calibration table that is damaged or belongs to something else
"""

from __future__ import annotations


class CalibrationError(Exception):
    """Base class of all errors here; the user can fix each of them."""

    exit_code = 1


class ImageSetError(CalibrationError):
    """An image set, or one image of it, cannot be used."""


class TableError(CalibrationError):
    """A calibration table is damaged, or was made for something else."""
