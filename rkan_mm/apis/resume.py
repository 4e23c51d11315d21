"""Which checkpoint a run resumes from: the newest one that is whole."""

from __future__ import annotations

import glob
import re
import zipfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from rkan_mm.engine import allow_mmengine_globals, safe_loading


def is_whole(path: Path) -> bool:
    """Whether a file that torch has saved is all there, by the checksums within it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _age(path: Path) -> tuple[str, int] | None:
    """Time and iteration at which a checkpoint was saved; None if it cannot be read or none can resume from it."""
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        return checkpoint['meta']['time'], checkpoint['meta']['iter']
    except Exception:  # torn in some way; which one does not matter
        return None


def newest_whole(cfg: Config) -> str | None:
    """Path of the checkpoint to resume from; the log says which torn ones were passed over.

    Candidates are what ``last_checkpoint`` in the work dir names and what fits the names of the checkpoint hook. A
    folder, as sharded strategies write it, and an address are taken as ``last_checkpoint`` names them. What that file
    names elsewhere, as in a copied work dir, counts only where nothing is here. What it names here is the newest, but
    for what was saved after it, by clock and iteration: machines may have clocks of other zones.

    Raises:
        PreflightError: the newest that is there holds more than plain data.
    """
    logger = MMLogger.get_current_instance()
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    work_dir = Path(cfg.work_dir)
    out_dir = Path(hook['out_dir']) / work_dir.name if hook.get('out_dir') else work_dir
    names = ['epoch_*.pth', 'iter_*.pth']
    if given := hook.get('filename_tmpl'):  # as epoch_{} or epoch_{:03d}
        names = ['*'.join(map(glob.escape, re.split(r'\{.*?\}', given)))]
    found = {path for name in names for path in out_dir.glob(name)}
    last = work_dir / 'last_checkpoint'
    text = last.read_text().strip() if last.is_file() else ''
    if '://' in text:
        return text
    named = Path(text) if text else None
    if named is not None and (out_dir / named.name).exists() and named.name:
        named = out_dir / named.name
    elif named is not None and found and named.parent.resolve() != out_dir.resolve():
        logger.warning(f'{last} names {named}, which is of another work dir; it is passed over')
        named = None
    if named is not None and named.is_dir() and named != Path():
        return str(named)
    if named is not None and named.is_file():
        found = {named, *(path for path in found if not path.samefile(named))}
    allow_mmengine_globals()
    ages = {path: _age(path) for path in found}
    known = None if named is None else ages.get(named)

    def rank(path: Path) -> tuple[int, tuple[str, int]]:
        age = ages[path]
        if age is None:  # first, to be told
            return 3, ('', 0)
        behind = known is not None and path != named and not (age[0] >= known[0] and age[1] > known[1])
        return 0 if behind else 1 if path == named else 2, age

    latest = max((path.stat().st_mtime for path, age in ages.items() if age is not None), default=0)
    for path in sorted(found, key=rank, reverse=True):
        if ages[path] is not None and is_whole(path):
            return str(path)
        if path.stat().st_mtime > latest and is_whole(path):
            safe_loading.read(str(path))  # to go on from an older one, or anew, would write over what it refuses
        logger.warning(f'{path} is torn or no checkpoint of a training run; it is passed over')
    return None
