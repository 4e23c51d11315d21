"""Our configs where mm looks for them: bases by name, ``mmpretrain.get_model``, ``list_models`` and the inferencers."""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import mmengine.config.config
import mmengine.hub.hub
import yaml

from rkan_mm.teaching import teach

MIM = Path(__file__).parent / '.mim'
HUB = 'mmpretrain.apis.model'
OTHERS = ('coco', 'finetune', 'rotated', 'segmentation', 'voc')  # folders without a classifier


def classifiers() -> list[dict]:
    """Entries of our metafiles that are no detectors."""
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    index = yaml.load((MIM / 'model-index.yml').read_text(), loader)
    entries = [entry for path in index['Import'] if Path(path).parent.name not in OTHERS
               for entry in yaml.load((MIM / path).read_text(), loader)['Models']]
    return [entry for entry in entries
            if all(result['Task'] == 'Image Classification' for result in entry['Results'])]


def register(hub: ModuleType) -> None:
    """Tell mmpretrain's hub of our classifiers."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, 'model-index.yml')
        index.write_text(json.dumps(dict(Models=classifiers())))
        hub.ModelHub.register_model_index(index, config_prefix=MIM)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers once mmpretrain is imported, which `import rkan_mm` leaves to others: it takes seconds."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != HUB:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                register(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def place_of(plain: Callable[[str], str], package: str) -> str:
    """Where a package lies; of one that is installed editable, mmengine 0.10.7 names a folder that is not there."""
    return str(MIM.parent) if package == MIM.parent.name else plain(package)


def register_when_imported() -> None:
    """Have mmengine find our configs; register with mmpretrain now if it is there, or else as soon as it is."""
    if not (MIM / 'model-index.yml').exists():  # a copy of the package without its configs
        return
    for module in (mmengine.config.config, mmengine.hub.hub):
        teach(module, 'get_installed_path', place_of)
    if HUB in sys.modules:
        register(sys.modules[HUB])
    else:
        sys.meta_path.insert(0, _AfterImport())
