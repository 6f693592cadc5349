"""The models that flew, on disk: two slots written in turn, and a copy of the base model that they build on.

A slot is written beside the one that holds the newest model, never over it, so a power cut costs the newest at most,
and the last good one always loads. What a slot gives is proven by hash: of its own bytes, of the base that it builds
on, and of the model that comes out. The daemon makes these files itself; a signature under them would be made with a
key that lies beside them and prove nothing more. What must not be trusted by its mere presence is a base model that
somebody brings: the configuration names its hash (`model.hash`), and `trusted` refuses any other.
"""

import hashlib
import logging
from pathlib import Path

import msgspec

from models import artifact
from models.errors import ArtifactError, DeltaError
from models.model import Model
from onboard import durable

_log = logging.getLogger(__name__)

FOLDER = "models"
CONTROL_FILE = "control"
"""Beside it: the last freeze, resume or anchor. A restart must not undo what an operator commanded."""
SLOTS = ("0.slot", "1.slot")
MAGIC = b"hadanet-slot-1\n"
MAX_SLOT_BYTES = 64 * 2**20
_DIGEST_BYTES = 32


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """What a slot holds: the model `model` as a delta to `base`, both SHA-256 in hex; the higher number is newer."""

    number: int
    base: str
    model: str
    payload: bytes


class Slots:
    """The slots of a state folder. Reading never raises: what cannot be used is told in `problems`, a line each."""

    def __init__(self, state: Path) -> None:
        self.folder = state / FOLDER
        self.problems: list[str] = []
        found = {name: self._read(name) for name in SLOTS}
        self._held: dict[str, Slot | None] = found
        """The whole slots as they are on disk, by file name."""

    def newest(self) -> list[Slot]:
        """The whole slots, newest first."""
        return sorted((slot for slot in self._held.values() if slot), key=lambda slot: -slot.number)

    def last(self, base: Model) -> Model | None:
        """The newest model on this base that is good, or None; what had to be passed over stands in `problems`."""
        from models import delta  # its kernels bring a compiler, which the supervisor has no use for

        for slot in self.newest():
            if slot.base != base.hash:
                continue
            try:
                model = delta.apply(base, slot.payload)
                if model.hash != slot.model:
                    raise DeltaError("what comes out is another model than it says")
                return model
            except (DeltaError, ArtifactError) as error:
                self._refuse(f"model {slot.model[:16]} of the last flight cannot be used: {error}")
                self._held = {name: None if held is slot else held for name, held in self._held.items()}
        return None

    def keep(self, base: Model, model: Model) -> None:
        """Make `model` the newest; durable on return. Raises OSError, and then the slots are as they were."""
        from models import delta

        newest = self.newest()
        if newest and (newest[0].base, newest[0].model) == (base.hash, model.hash):
            return
        slot = Slot(newest[0].number + 1 if newest else 1, base.hash, model.hash, delta.encode(base, model))
        name = next((name for name in SLOTS if self._held[name] is None or self._held[name] is not newest[0]), SLOTS[0])
        body = msgspec.msgpack.encode(slot)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        durable.write(self.folder / name, MAGIC + hashlib.sha256(body).digest() + body)
        self._held[name] = slot

    # --- base models -------------------------------------------------------------------------------------------

    def keep_base(self, base: Model) -> Path:
        """A copy of a base model that may fly, so that it is there when the file it came from is not. Raises
        ArtifactError.

        Copies that neither this base nor a slot needs are deleted.
        """
        path = self.base_path(base.hash)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if not self._is_good(path, base.hash):
                artifact.save(base, path)
                durable.sync_folder(self.folder)
            needed = {path} | {self.base_path(slot.base) for slot in self.newest()}
            for other in set(self.folder.glob("base-*.safetensors")) - needed:
                other.unlink()
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error
        return path

    def last_base(self) -> Path | None:
        """The copy of the base that flew last and is good, or None."""
        for slot in self.newest():
            if self._is_good(path := self.base_path(slot.base), slot.base):
                return path
        return None

    def base_path(self, base_hash: str) -> Path:
        """Where the copy of a base model lies, by its hash (hex)."""
        return self.folder / f"base-{base_hash[:32]}.safetensors"

    def _is_good(self, path: Path, base_hash: str) -> bool:
        if not path.exists():
            return False
        try:
            if artifact.load(path).hash == base_hash:
                return True
            raise ArtifactError(f"{path}: another model than its name says")
        except ArtifactError as error:
            self._refuse(f"the copy of a base model cannot be used: {error}")
            return False

    def _read(self, name: str) -> Slot | None:
        path = self.folder / name
        try:
            if path.stat().st_size > MAX_SLOT_BYTES:
                raise ValueError("it is too large")
            data = path.read_bytes()
            digest, body = data[len(MAGIC) : len(MAGIC) + _DIGEST_BYTES], data[len(MAGIC) + _DIGEST_BYTES :]
            if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
                raise ValueError("it is damaged or cut off")
            return msgspec.msgpack.decode(body, type=Slot)
        except (FileNotFoundError, NotADirectoryError):  # what is wrong with the folder is told where it is written to
            return None
        except (OSError, ValueError) as error:  # ValueError: also msgspec's
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._refuse(f"{path}: cannot be used: {reason}")
            return None

    def _refuse(self, problem: str) -> None:
        _log.warning("%s", problem)
        self.problems.append(problem)


def trusted(path: str, wanted: str) -> Model:
    """The base model at `path`, if it is the one whose hash (hex) the configuration names.

    The shipped one, "", needs no name: it comes with this program. Raises ArtifactError.
    """
    model = artifact.load(Path(path) if path else artifact.DEFAULT)
    where = path or "the shipped model"
    if path and not wanted:
        raise ArtifactError(
            f'{path}: nothing says that this model may fly; if you trust it, set  hash = "{model.hash}"  in [model]'
        )
    if wanted and model.hash != wanted:
        raise ArtifactError(
            f"{where}: its hash is {model.hash[:16]}..., [model] hash names {wanted[:16]}...: it is another model"
        )
    return model
