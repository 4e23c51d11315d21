"""Files that are either whole or not there, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

SUFFIX = '.tmp'  # of what is being written


@register_backend('rkan_mm.atomic')
class AtomicBackend(LocalBackend):
    """The local disk; a file is written beside its place, flushed to the disk and then renamed.

    Raises:
        OSError: as the local backend, e.g. on a full disk. What stood in the file's place is still there then.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        try:
            self._put(obj, Path(filepath))
        except FileNotFoundError:  # another training that begins in this folder takes the part for one that was left
            self._put(obj, Path(filepath))

    @staticmethod
    def _put(obj: bytes, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.stem}.{uuid.uuid4().hex}{path.suffix}{SUFFIX}')  # of this call alone
        try:
            with part.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # some network disks do not write folders on demand
            folder = os.open(path.parent, os.O_RDONLY)  # the new name is on the disk only when the folder is
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)
