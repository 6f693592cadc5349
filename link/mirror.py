"""The station's copy of the model that flies: follows a drone through its deltas, each proven by two hashes."""

from link.messages import Delta
from models.delta import apply as apply_payload
from models.errors import DeltaError
from models.model import Model


class Mirror:
    """A drone's model in force, rebuilt from `base` and the drone's deltas.

    `base` is the model that the drone started from, with the drone's classes; a "resync" delta applies to it, every
    other one to the present `model`. `applied` counts deltas that changed it, `ignored` those that came again.
    """

    def __init__(self, base: Model) -> None:
        self.base = base
        self.model = base
        self.applied = 0
        self.ignored = 0

    @property
    def hash(self) -> bytes:
        """SHA-256 of the present model, as in messages."""
        return bytes.fromhex(self.model.hash)

    def apply(self, delta: Delta) -> None:
        """Follow one delta; one that was applied already is ignored.

        Raises DeltaError where it applies to another model, is damaged, or leads elsewhere than it says. The mirror is
        unchanged then, and the drone has to be asked for a resync.
        """
        if delta.result == self.hash != delta.parent:
            self.ignored += 1
            return
        start = self.base if delta.reason == "resync" else self.model
        if delta.parent != bytes.fromhex(start.hash):
            whose = "the base" if delta.reason == "resync" else "the mirror"
            raise DeltaError(
                f"a delta ({delta.reason}, frame {delta.frame}) for model {delta.parent.hex()[:12]}, "
                f"but {whose} is {start.hash[:12]}: ask the drone for a resync"
            )
        model = apply_payload(start, delta.payload)
        if bytes.fromhex(model.hash) != delta.result:
            raise DeltaError(
                f"a delta ({delta.reason}, frame {delta.frame}) leads to model {model.hash[:12]} "
                f"and not to {delta.result.hex()[:12]} as it says: ask the drone for a resync"
            )
        self.model = model
        self.applied += 1
