"""What a process tells once, however often it is found."""

import logging

_TOLD: set[str] = set()


def warn(key: str, text: str) -> None:
    """Logs a warning, the first of its key in this process."""
    if key not in _TOLD:
        _TOLD.add(key)
        logging.warning(text)
