"""Loads the exports of a cdc-export service, each exactly once."""

from cdc_export.client import Client, Error
from cdc_export.export import Export, Position
from cdc_export.lanes import changes, jobs

__all__ = ["Client", "Error", "Export", "Position", "changes", "jobs"]
