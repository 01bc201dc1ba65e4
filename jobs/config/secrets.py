"""Passwords and keys are never shown: one function masks them in settings, in addresses and in messages."""

from __future__ import annotations

import re

MASK = "***"

# Names whose value is secret: our own, those of Hadoop's file systems (S3, Azure, Google), of cloud environments, of
# Spark and of drivers. "tokens" and "tokenizer" are words of language models.
SECRET_NAME = re.compile(
    r"secret|passw(?:or)?d|passphrase|(?<![a-z])(?:pwd|sas)(?![a-z])|token(?!s(?![a-z])|iz)|credential|signature"
    r"|(?:access|account|api|client|customer|encryption|master|private|provided|shared|storage)[._-]?key"
    r"|connection[._-]?string|authorization|service[._-]account[._-]key",
    re.IGNORECASE,
)

# Settings that lead to a secret but are not secret: a class, a file, an address.
HARMLESS_NAME = re.compile(r"(?:provider(?:[._-](?:path|type))?|file|endpoint|url|uri)$", re.IGNORECASE)

# user:password@ after ://. A password should not hold "/", "@" or quotes, but may: so mask all up to the last "@".
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^\s/@:]*:[^\s]*@")

# token@ after ://. In addresses of Azure's file systems this place holds a container, which is not secret.
_USER = re.compile(r"(?<!abfs)(?<!abfss)(?<!wasb)(?<!wasbs)://[^\s/@:'\"]+@")

# Parameters of signed addresses and of drivers, with names that are too short for the pattern above: ?sig=, ?key=.
_SHORT_PARAMETER = re.compile(r"(?<=[?&;])(?P<name>sig|pass|key)=[^\s&;'\"]+", re.IGNORECASE)

# password=value, password = 'value', "password": "value", -Dpassword=value: from the word that makes a name secret to
# the end of the value. A value without quotes ends at a blank or a separator.
_ASSIGNED = re.compile(
    rf"(?P<name>(?:{SECRET_NAME.pattern})[\w.-]*)(?P<is>[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&\"'(){}\[\]]+)",
    re.IGNORECASE,
)

# --password value
_FLAG = re.compile(r"(?P<name>(?<!\S)--?[A-Za-z][\w-]*)(?P<is>\s+)(?P<value>[^\s-]\S*)")

_BEARER = re.compile(r"\b(?P<name>bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Tell from a setting's name whether its value is secret."""
    return SECRET_NAME.search(name) is not None and HARMLESS_NAME.search(name) is None


def masked(text: str) -> str:
    """Mask the secrets in a text: credentials in addresses, and the values of secret names.

    Args:
        text: A setting's value or a message.
    """
    text = _USER.sub(f"://{MASK}@", _USER_AND_PASSWORD.sub(f"{MASK}@", text))
    text = _BEARER.sub(rf"\g<name> {MASK}", _SHORT_PARAMETER.sub(rf"\g<name>={MASK}", text))
    return _FLAG.sub(_masked_value, _ASSIGNED.sub(_masked_value, text))


def _masked_value(found: re.Match[str]) -> str:
    if not is_secret(found["name"]):
        return found[0]
    return f"{found['name']}{found['is']}{MASK}"
