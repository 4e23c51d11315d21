#!/usr/bin/env python3
"""Look into a trained model. Beside the other tools this file hides the standard library's `inspect`: it gives way."""

if __name__ == '__main__':
    from rkan_mm.apis import inspect
    from rkan_mm.apis.runner import main

    main(inspect.main)
else:
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    here = Path(__file__).resolve().parent
    spec = PathFinder.find_spec(__name__, [path for path in sys.path if Path(path or '.').resolve() != here])
    sys.modules[__name__] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
