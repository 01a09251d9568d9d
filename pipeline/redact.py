"""Keeps secrets out of everything that is printed, logged or stored."""

import os
import re

SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
"""Environment variables whose values nobody may see; workers get them by another way than the others."""
_IN_URI = re.compile(r"(\w[\w+.-]*://[^\s/:@]*):[^\s/@]+@")
_SHORTEST = 6


def redact(text: str) -> str:
    """The text with passwords in URIs and the values of `SECRETS` replaced by `***`."""
    text = _IN_URI.sub(r"\1:***@", text)
    for name in SECRETS:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return text
