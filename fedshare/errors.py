"""Errors that a person can act on: the command line prints their one line and no traceback."""

import errno
from unicodedata import category, name

NAME = 80  # characters of a name that somebody else has chosen, where it is shown
SYSTEM = 1  # the exit status of what the system did not do: it may do it when the command is started again
# What an OSError says of a file that was named; any other is the system's.
_NAMED = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.ENOEXEC, errno.ENODEV),
}
# And what it says when something is used up, in whatever was being done.
_SPENT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
# What an operator mends at the disk: full, over its quota, read-only, a file beyond the limit, broken.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}

# Characters that Python calls printable and that show as nothing: of Unicode's Default_Ignorable_Code_Point those that
# are no format characters, the blank patterns of Braille and music, and the blanks of Egyptian and of Khitan.
_BLANKS = (
    *(range(0x34F, 0x350), range(0x115F, 0x1161), range(0x17B4, 0x17B6), range(0x180B, 0x1810), range(0x2800, 0x2801)),
    *(range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFFA0, 0xFFA1), range(0x13441, 0x13443)),
    *(range(0x16FE4, 0x16FE5), range(0x1D159, 0x1D15A), range(0xE0000, 0xE1000)),
)
_MARKS = 4  # on one letter: as many as languages need, and too few to cover other lines


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed."""

    exit_code = 2


class RunHalted(UserError):
    """A run that cannot go on. The message says in which round, and why."""

    exit_code = 3


class DiskError(UserError):
    """A disk that is full, read-only or broken. The message says what is safe there, and how to go on."""

    exit_code = 3


def printable(text: str) -> str:
    """`text` as one line in which every character shows, whoever has written it; the others are escaped.

    Escaped are control and format characters, line ends, all spaces but the plain one, what Unicode has not assigned,
    what shows as nothing, and marks that do not belong to the script of the letter before them, which accents of all
    scripts never do: with these one name could be made to look like another. Letters of all scripts stay, also where
    one looks like another's.
    """
    if text.isascii() and text.isprintable():
        return text
    shown, script, marks = list[str](), "", 0  # script: of the letter to which marks may be added
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
    """The same, and not endless."""
    line = printable(text[: 2 * most].strip())
    return line if len(line) <= most else line[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    """What `error` says, in one line; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def of_the_disk(error: BaseException) -> bool:
    """Whether an error is one that space, or a disk that can be written, mends."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def exit_status(error: UserError | OSError) -> int:
    """Of a command that ends with `error`: `SYSTEM` where the fault is the system's, not of what was asked for."""
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
