"""Forms: encodings of an upload's tensors for sending."""

from fedshare.forms.form import Dense, Form

__all__ = ["Dense", "Form"]
