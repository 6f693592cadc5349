"""What the headers of a flight's photos say of where they were taken, as one table."""

from pathlib import Path

import msgspec

from models.errors import SourceError
from onboard.sources.photos import PhotoSource
from onboard.telemetry.table import Series, Telemetry, series


def read_photos(folder: Path) -> Telemetry:
    """The positions of a folder of photos, by EXIF and XMP; no picture is decoded. t_ns are the photos' times.

    Raises SourceError where there are no photos, or none of them says where it was taken.
    """
    photos = PhotoSource(folder).photos
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for photo in photos:
        for name, value in msgspec.structs.asdict(photo.pose).items():
            if value is not None:
                times, values = columns.setdefault(_quantity(name), ([], []))
                times.append(photo.t_ns)
                values.append(value)
    if not columns:
        raise SourceError(
            f"{folder}: none of its {len(photos)} photos says where it was taken; give a log with ?log=FILE"
        )
    made = {name: series(f"EXIF.{name}", times, values) for name, (times, values) in columns.items()}
    table: dict[str, Series] = {name: column for name, column in made.items() if column is not None}
    without = len(photos) - len(columns.get("lat_deg", ([], []))[0])
    problems = (f"{without} of {len(photos)} photos do not say where they were taken",) if without else ()
    return Telemetry(uri=str(folder), kind="EXIF", series=table, problems=problems)


def _quantity(name: str) -> str:
    """A field of Pose as a quantity: its angles are the camera's."""
    return f"camera_{name}" if name in ("yaw_deg", "pitch_deg", "roll_deg") else name
