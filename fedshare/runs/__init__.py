"""What a run leaves: its folder, and the records that show whether it is whole."""

from fedshare.runs.folder import NOTHING, Row, RunFolder
from fedshare.runs.verify import initial_flaw, records_flaw, self_check, unwritten, verify

__all__ = ["NOTHING", "Row", "RunFolder", "initial_flaw", "records_flaw", "self_check", "unwritten", "verify"]
