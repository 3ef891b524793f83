"""Errors that a user can act on: the command line prints one line for them and no traceback."""

import errno
from unicodedata import category, name

NAME = 80  # maximum characters shown of a name chosen by someone else
SYSTEM = 1  # exit status of a system failure: running the command again may succeed
# OSErrors about a named file; all others are system failures.
_NAMED = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.ENOEXEC, errno.ENODEV),
}
# OSErrors about an exhausted resource, whatever was being done.
_SPENT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
# OSErrors that an operator fixes at the disk: full, over quota, read-only, a file beyond the limit, broken.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}

# Characters that Python calls printable but that are invisible: those of Unicode's Default_Ignorable_Code_Point that
# are not format characters, the blank patterns of Braille and music, and the blanks of Egyptian and of Khitan.
_BLANKS = (
    *(range(0x34F, 0x350), range(0x115F, 0x1161), range(0x17B4, 0x17B6), range(0x180B, 0x1810), range(0x2800, 0x2801)),
    *(range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFFA0, 0xFFA1), range(0x13441, 0x13443)),
    *(range(0x16FE4, 0x16FE5), range(0x1D159, 0x1D15A), range(0xE0000, 0xE1000)),
)
_MARKS = 4  # per letter: as many as languages need, and too few to cover other lines


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed."""

    exit_code = 2


class RunHalted(UserError):
    """A run that cannot continue. The message says in which round, and why."""

    exit_code = 3


class DiskError(UserError):
    """A full, read-only or broken disk. The message says what is safe on it, and how to continue."""

    exit_code = 3


def printable(text: str) -> str:
    """Return untrusted `text` as one line in which every character is visible; the others are escaped.

    Escaped are control and format characters, line ends, all spaces but the plain one, code points that Unicode has
    not assigned, invisible characters, and marks that do not belong to the script of the letter before them, unlike
    accents in any script: these could make one name look like another. Letters of all scripts stay, even if one looks
    like another's.
    """
    if text.isascii() and text.isprintable():
        return text
    shown, script, marks = list[str](), "", 0  # script of the letter to which marks may be added
    for char in text:
        kind, own = category(char)[0], name(char, "").partition(" ")[0]
        marks = marks + 1 if kind == "M" else 0
        plain = char.isprintable() and not any(ord(char) in blanks for blanks in _BLANKS)
        if marks:
            plain = plain and own == script and marks <= _MARKS
        script = own if plain and kind in "LM" else ""
        shown.append(char if plain else char.encode("unicode_escape").decode())
    return "".join(shown)


def brief(text: str, most: int = 200) -> str:
    """Return `printable` text, cut to at most `most` characters."""
    line = printable(text[: 2 * most].strip())
    return line if len(line) <= most else line[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def of_the_disk(error: BaseException) -> bool:
    """Return whether free space, or a writable disk, would fix the error."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def exit_status(error: UserError | OSError) -> int:
    """Return a command's exit status for `error`: `SYSTEM` if the system is at fault, not the input."""
    if isinstance(error, OSError):
        if of_the_disk(error):
            return DiskError.exit_code
        return 2 if error.errno is None or error.errno in _NAMED else SYSTEM
    cause: BaseException | None = error
    while cause and error.exit_code == UserError.exit_code:
        if of_the_disk(cause):
            return DiskError.exit_code
        if isinstance(cause, OSError) and cause.errno in _SPENT:
            return SYSTEM
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return error.exit_code
