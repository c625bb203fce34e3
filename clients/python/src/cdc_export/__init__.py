"""Loads the exports of a cdc-export service, each exactly once."""

from cdc_export.changes import changes, jobs
from cdc_export.client import Client, Error
from cdc_export.export import Export, Position

__all__ = ["Client", "Error", "Export", "Position", "changes", "jobs"]
