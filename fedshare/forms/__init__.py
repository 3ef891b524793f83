"""How the tensors of an upload are written down to travel."""

from fedshare.forms.form import Dense, Form

__all__ = ["Dense", "Form"]
