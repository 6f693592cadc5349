"""Parameters of a source's URI: described in a table, bounded, unknown ones refused."""

import re
from collections.abc import Mapping
from math import isfinite
from urllib.parse import parse_qsl, urlsplit

import msgspec

from models.errors import SourceError

KINDS = (
    "a folder of photos, a video file, a recording or bag, v4l2:///dev/video0, csi://0, rtsp://HOST/STREAM or sim://"
)


class Parameter(msgspec.Struct, frozen=True):
    """A number in a URI: an integer if `default` is one; both bounds belong to the range."""

    default: int | float
    low: int | float
    high: int | float
    about: str


def shown(uri: str) -> str:
    """The URI as it may be logged, recorded and sent: without the name and password of a camera in the network."""
    return re.sub(r"://[^/]*@", "://...@", uri)


def split(uri: str) -> tuple[str, str]:
    """Return what stands between ``://`` and ``?``, and what stands after ``?``.

    Raises
    ------
    SourceError
        The text is no URI.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise SourceError(f"{uri}: this is not a URI: {error}") from error
    if parts.fragment:
        raise SourceError(f"{uri}: '#{parts.fragment}' has no meaning here; leave it out")
    return parts.netloc + parts.path, parts.query


def parse(uri: str, query: str, table: Mapping[str, Parameter]) -> dict[str, int | float]:
    """Read the parameters of `query`, with the defaults of `table` for those that are not given.

    Raises
    ------
    SourceError
        A parameter is unknown, given twice, not a number, or out of its bounds; the message lists or names it.
    """
    values: dict[str, int | float] = {name: parameter.default for name, parameter in table.items()}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=100) if query else []
    except ValueError as error:
        raise SourceError(f"{uri}: write the parameters as name=value, with & between them") from error
    seen = set()
    for name, text in pairs:
        if name not in table:
            known = ", ".join(f"{key} ({parameter.about})" for key, parameter in table.items())
            raise SourceError(f"{uri}: there is no parameter '{name}'; there are {known}")
        if name in seen:
            raise SourceError(f"{uri}: the parameter '{name}' stands there twice; keep one")
        seen.add(name)
        values[name] = _number(uri, name, text, table[name])
    return values


def texts(uri: str, query: str, table: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a query as text, "" where one is not given; table: what each one means.

    Raises SourceError for one that is not in the table, or that stands there twice.
    """
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    names = [name for name, _ in pairs]
    if (query and not pairs) or len(set(names)) < len(names) or not set(names) <= set(table):
        known = ", ".join(f"{name}= ({about})" for name, about in table.items())
        known = f"there can stand, once each and with & between them: {known}" if known else "nothing can stand here"
        raise SourceError(f"{uri}: behind the ? {known}")
    return dict.fromkeys(table, "") | dict(pairs)


def _number(uri: str, name: str, text: str, parameter: Parameter) -> int | float:
    whole = isinstance(parameter.default, int)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = None
    if value is None or not isfinite(value) or not parameter.low <= value <= parameter.high:
        kind = "a whole number" if whole else "a number"
        raise SourceError(
            f"{uri}: {name}={text} ({parameter.about}) must be {kind} from {parameter.low} to {parameter.high}"
        )
    return value
