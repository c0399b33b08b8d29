"""Paths as a person writes them: `expanded("~/texts", "data.path")`."""

from pathlib import Path


def expanded(text: str | Path, what: str) -> Path:
    """A path in which `~` is the home folder that it names.

    Args:
        what: the flag or variable that gave it, for the message.

    Raises:
        ValueError: there is no such home.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{what}={text} begins with a home folder that cannot be found; write the folder out, from / on") from None


def home() -> Path:
    """The home folder; the root for an account without one, as many containers have."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
