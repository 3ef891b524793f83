"""The folder of a run, and the records that prove its integrity."""

from fedshare.runs.folder import NOTHING, Row, RunFolder
from fedshare.runs.verify import initial_flaw, records_flaw, self_check, unwritten, verify

__all__ = ["NOTHING", "Row", "RunFolder", "initial_flaw", "records_flaw", "self_check", "unwritten", "verify"]
