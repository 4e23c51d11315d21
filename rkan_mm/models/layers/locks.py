"""Locks that a forked process finds open, whatever the other threads of its parent did."""

import os
import threading


def open_after_fork() -> threading.Lock:
    """A lock for short sections, that nobody holds while a process forks: the child would wait for it for ever."""
    lock = threading.Lock()
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
