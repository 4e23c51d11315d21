"""Put ours in the place of another library's function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def teach(module: Any, name: str, ours: Callable) -> None:
    """Put ``ours(plain, *args)`` in the place of a library's function ``plain(*args)``, once, if there is one.

    Args:
        module: of the library, or a class.
        name: of its function.
        ours: calls the function that it is given for all that has nothing to do with what is ours.
    """
    plain = getattr(module, name, None)
    if plain is None or hasattr(plain, 'plain'):
        return

    static = isinstance(inspect.getattr_static(module, name), staticmethod)

    @functools.wraps(plain)
    def function(*args, **kwargs) -> Any:
        return ours(plain, *args, **kwargs)
    function.plain = plain  # type: ignore[attr-defined]
    setattr(module, name, staticmethod(function) if static else function)
