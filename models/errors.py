"""The errors of the project. A message says what was wrong, where, and what to do.

::

    HadanetError            anything that is a user's or the world's fault, never a bug
    ├── ArtifactError       a model file that is missing, damaged, or of another format
    ├── DeltaError          a delta that does not apply: another parent, out of bounds, damaged
    ├── RecipeError         a training recipe that cannot be followed
    ├── ConfigError         a configuration file (onboard.config)
    ├── SourceError         a camera, folder, video or flight that cannot be opened (onboard.sources)
    ├── RecorderError       a folder that cannot be recorded to (onboard.recorder)
    ├── TruthError          a truth file that cannot be used (onboard.truth)
    ├── LinkError           keys, addresses, and messages that break the protocol (link)
    └── StationError        the ground station's own files, ports and inputs (ground)

Command lines print the message of a `HadanetError` on one line and exit with status 1; every other
exception is a bug and keeps its traceback.
"""


class HadanetError(Exception):
    """Base of all errors that a person can do something about."""


class ArtifactError(HadanetError):
    """A model file is missing, damaged, or of another format."""


class DeltaError(HadanetError):
    """A delta does not apply: another parent, a value out of bounds, damaged bytes."""


class RecipeError(HadanetError):
    """A training recipe cannot be followed."""


class ConfigError(HadanetError):
    """A configuration file is wrong; the message names file, line and field."""


class SourceError(HadanetError):
    """A camera, folder, video or simulated flight cannot be opened."""


class RecorderError(HadanetError):
    """A folder that cannot be recorded to."""


class TruthError(HadanetError):
    """A truth file cannot be used; the message names file and line."""


class LinkError(HadanetError):
    """Keys, addresses, or messages that break the protocol."""


class StationError(HadanetError):
    """The ground station's own files, ports and inputs."""
