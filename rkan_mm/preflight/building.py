"""What mm raises while a run is built, before its first step, as one sentence; a log file takes the traceback."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.logging import MMLogger
from mmengine.registry import Registry

from rkan_mm.engine.run_error import PreflightError, RunError

MEMORY = "out of memory|[Cc]annot allocate memory|can't allocate memory|STATUS_ALLOC_FAILED"

SINGLE_ALONE = ('expected scalar type Float but found (BFloat16|Half)',
                "an operation runs in float32 alone here, such as mmcv's NMS and RoIAlign on a CPU: leave --amp out")
"""What mm says, and what may help."""

ASSIGN = 'model.backbone = dict(type=RKANet, backbone=model.backbone)'
"""How a part is changed in a pure Python config."""

KEPT = (f'_delete_=True is for what a config has from its _base_; in pure Python, where update() keeps what was there, '
        f'write {ASSIGN}')

CURES: tuple[tuple[str, str], ...] = (
    ("unexpected keyword argument '_delete_'", KEPT),
    ('file type in the inheritance chain', 'one config has _base_, the other is in pure Python: write both in one way, '
                                           'here by `with read_base(): from .NAME import *`'),
    (r'''must contain the key "type".*\\?'type\\?': [^\\']''', 'a part of it has no type; in a pure Python config '
     f'model = dict(...) replaces all that the base has: write {ASSIGN}'),
    ('must contain the key "type"', 'a part of it has no type'),
    ("object has no attribute 'model'", 'a config of a run has model = dict(...)'),
    ('need at least one array to concatenate', 'a data set is empty: it has no sample, or its filter_cfg left none. '
                                               'Check ann_file, data_prefix and metainfo.classes'),
    ("got an unexpected keyword argument", 'look whether it is of the base config; what a base has goes only with '
                                           '_delete_=True'),
    ('should be either all None|(dataloader|evaluator|_cfg)[^.]*should be both None or',
     'give dataloader, cfg and evaluator of a split, or none'),
    ('self._test_loop` should not be None', 'the config has no test_dataloader, test_cfg and test_evaluator'),
    ('self._train_loop` should not be None', 'the config has no train_dataloader, train_cfg and optim_wrapper'),
    ("doesn't match the size of optimizer's group|different number of parameter groups",
     'the checkpoint is of another optimizer: to begin anew with its weights, --cfg-options load_from=...'),
    ("not supported between instances of ('str' and|'\\w+' and 'str')|Cannot cast scalar from dtype.'<U|"
     'invalid literal for int',
     'a text stands where a number belongs, such as lr=\'0.001\' for lr=0.001, or in an ann_file a name for the '
     'number of a class'),
    ('None is not a callable object', 'a type in the config has no class; is optim_wrapper.optimizer.type as torch '
                                      'spells it, e.g. SGD or AdamW?'),
    (r'mmcv[./\\]_ext|importing _ext', 'mmcv is without compiled operations, or they are of another torch; detectors '
                                       'need them: pip install --no-build-isolation compiles them, see '
                                       'docs/installation.md'),
    SINGLE_ALONE,
    ('[Nn]o NVIDIA driver|not compiled with CUDA enabled', 'this machine has no GPU: --device cpu, or leave it out'),
    ('Expected one of cpu, cuda', 'devices are called cpu, cuda or cuda:0'),
    ('environment variable RANK expected', 'start it by torchrun --nproc-per-node N, or leave --launcher out'),
    ('SLURM_PROCID', 'start it by srun, or leave --launcher out'),
    ('number of subfolders', 'there is a folder for each class; where the type of the data set has names of its own, '
                             'as ImageNet has 1000, give yours by classes, or take CustomDataset'),
    ('Cannot infer the rule for', "write rule='greater', or 'less', beside save_best or monitor, such as "
                                  'default_hooks.checkpoint.rule=greater'),
    ('Expected input batch_size .* to match target', 'the pictures have several labels, or none: take '
                                                     'MultiLabelLinearClsHead, or data of one label each'),
    (r'''(No such file or directory: '|file ")[^'"]*\.py['"]|does not support to load \w+ config''',
     "a base of an installed mm is written with its package, folder and name: 'mmdet::retinanet/retinanet_r50_fpn_1x_"
     "coco.py'"),
    ('list indices must be integers', 'a part of it is a list: write its number, as in test_evaluator.0.metric=bbox'),
    ('Unexpected UTF-8 BOM', 'the json begins with a byte order mark: save it as UTF-8 without BOM'),
    ('(data_item|elem).*should be of equal size', 'the pipeline does not pack its results: let it end with '
                                                   'PackDetInputs or PackInputs'),
    ('KeyError: (width|height)$', 'the annotations lack the width and height of pictures, by which filter_cfg and '
                                  'AspectRatioBatchSampler go: write them, or leave these two out'),
    ('not enough values to unpack', 'each line of an ann_file of pictures is: path, space, number of the class'),
    ('urlopen error.*, in ', 'files in its data_root are missing or torn, by their md5, and it cannot be downloaded: '
                             'get it elsewhere, unpack it there and set download=False'),
    ("no attribute 'gt_label'", 'the pictures have no labels: look at with_label and ann_file of their data set'),
    ('Only py/yml/yaml/json', 'the config comes first, then the checkpoint'),
    ('KeyError: img_path$', "the folder of mmpretrain's pictures is data_prefix='...', or dict(img_path='...'): img "
                            'is of mmdet'),
    ('meta information of the .*dataset', 'the parts of a ConcatDataset name the same classes: write them in each'),
    ('num_classes should equal to cls_score', 'model.head.loss has a num_classes of its own: set it as that of the '
                                              'head, or leave it out'),
    ('Top-[0-9]+ accuracy is unavailable', 'topk of the head is more than there are classes: lower it, or leave '
                                           'cal_acc out'),
    ('weight tensor should be defined', 'class_weight of the loss has a number for each class of the head'),
    ('^KeyError: (debug|info|warning|error)$', 'levels are written in capitals, such as INFO'),
    ('to have [0-9]+ channels, but got', 'a part takes another number of channels than it is given: look at its '
                                         'in_channels, and with benchmark at --shape, which is B C H W'),
    ("'mix_results' in results", 'Mosaic, MixUp and CopyPaste mix pictures of a data set: they stand in the pipeline '
     "of dict(type='MultiImageMixDataset', dataset=..., pipeline=[...]) around it"),
    ('results does not contain masks', 'CopyPaste pastes objects by their masks: LoadAnnotations(with_mask=True)'),
    ('Cannot find valid image after', 'a step of the pipeline, as FilterAnnotations or a crop, leaves no object of any '
                                      'picture'),
    (MEMORY, 'lower the batch size, which is train_dataloader.batch_size of a training, --batch-size of infer and in '
             '--shape of benchmark, or see the table on memory in the docs'),
)
"""What may help, by what mm's message holds."""

OF_PICTURES = ('xml_path', 'img_path', 'file_name', 'filename', 'ID', 'img_id')
"""What data sets of mm call the name of a picture, or of its file of annotations."""

WITHIN: tuple[tuple[str, str], ...] = (
    (r"failed to load image: (.+)|No such file or directory: '(.+)'|cannot identify image file '(.+)'",
     '{} cannot be read: mend it or take it out, then go on with --resume'),
    (r'!buf.empty\(\)', 'An image file is empty: leave preflight.images on to find it, take it out, then go on with '
     '--resume'),
    ('Expected more than 1 value per channel', 'The last batch of an epoch has one image, and a batch norm sees one '
     'pixel of it: set train_dataloader.drop_last=True, then go on with --resume'),
    ('No space left on device|[Qq]uota exceeded', 'The disk is full, or your quota of it: make room, then go on with '
     '--resume'),
    ('Too many open files|received 0 items of ancdata', 'Too many files are open at once: run ulimit -n 65536 first, '
     'or lower num_workers; then go on with --resume'),
    ('DataLoader worker .* (is killed|exited unexpectedly)|unable to (allocate|open) shared memory',
     'A worker that loads data was killed: lower num_workers, or give the machine (in Docker: --shm-size) more shared '
     'memory; then go on with --resume'),
    (MEMORY, 'Out of memory: lower train_dataloader.batch_size, then go on with --resume'),
)
"""What a user can mend in the midst of a run."""


@contextlib.contextmanager
def building(what: str, done: Callable[[], bool] = lambda: False, reading: bool = False) -> Iterator[None]:
    """Meanwhile an error is the user's to mend; where its cure is not known, a traceback stays with it.

    Args:
        what: is done, for the message.
        done: whether building has ended, so that errors are those of the run.
        reading: a config is read; a slip in its own text needs no traceback, one in a module that it imports does.

    Raises:
        PreflightError: with the error's text and, where known, the cure.
        RunError: a run was stopped by what its user can mend; the other errors of a run stay as they are.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if done():
            if (sentence := _within(str(error))) is None:
                raise
            raise RunError(f'{sentence}.{to_file(traceback.format_exc())}') from error
        text, where, logged = _text(error), _of_data(error), to_file(traceback.format_exc())
        cure = _of_registry(error) or of_import(error) or _of_recursion(error) or next(
            (cure for pattern, cure in CURES if any(re.search(pattern, each) for each in (text, f'{text}{where}'))), '')
        if not (logged or cure or (reading and not _passes(error, 'importlib'))):
            traceback.print_exc()
            logged = ' The traceback is above'
        problem = PreflightError(f'{what}: {text}{where}' + (f' ({cure})' if cure else '') + f'.{logged}')
        problem.__cause__ = error
    else:
        return
    raise problem


@contextlib.contextmanager
def checking(what: str) -> Iterator[None]:
    """Meanwhile something is checked: that a check itself fails is said in the log, and stops nobody."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        to_file(traceback.format_exc())
        MMLogger.get_current_instance().warning(f'{what} could not be checked before the run: {_text(error)}')


def _within(text: str) -> str | None:
    for pattern, sentence in WITHIN:
        if found := re.search(pattern, text):
            return sentence.format(next(filter(None, found.groups()), ''))
    return None


def _text(error: Exception) -> str:
    """The innermost sentence: mm's registries put one around another."""
    text = ' '.join(str(error).split()).rstrip('. ')
    if not text and (lines := traceback.extract_tb(error.__traceback__)):  # an assertion tells by its line
        text = lines[-1].line or ''
    name = type(error).__name__
    text = re.sub(r"^class `(\w+)` in [\w/.]+: ", r'\1: ', text)
    text = re.split(r' Please check whether the value of| More details can be found', text)[0].strip(' .')
    if text[:1] in ('"', "'") and text.count(text[0]) == 2 and text.endswith(text[0]):  # as KeyError puts its text
        text = text[1:-1]
    return text if name == 'PreflightError' or text.startswith(name) else f'{name}: {text}'


def _of_data(error: Exception) -> str:
    """Which data set has come to an error while it read its annotations, and at which picture, where that is known."""
    found = ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner: Any = frame.f_locals.get('self')
        name = frame.f_code.co_name
        if name == 'load_data_list' and hasattr(owner, 'ann_file'):
            found = f', in {type(owner).__name__}' + (f' of {owner.ann_file}' if owner.ann_file else '')
        for given in frame.f_locals.values() if found and name == 'parse_data_info' else ():
            record = given.get('raw_img_info', given) if isinstance(given, dict) else {}
            if key := next((key for key in OF_PICTURES if isinstance(record.get(key), str)), None):
                return f'{found}, at {record[key]}'
    return found


def _of_registry(error: Exception) -> str | None:
    """Names like one that no registry has."""
    found = re.search(r"'?([\w.]+) is not in the ([\w.-]+)::([\w -]+) registry", str(error))
    if not found:
        return None
    name, scope, kind = found.groups()
    known = {each for registry in _registries(kind) for each in registry.module_dict}
    near = difflib.get_close_matches(name.rpartition('.')[2], sorted(known), n=3)
    elsewhere = sorted({registry.scope for registry in _registries(kind) if name in registry.module_dict} - {scope})
    if elsewhere:
        return f'{elsewhere[0]} has it: write {elsewhere[0]}.{name}, or is default_scope wrong? It is {scope!r}'
    return (f'did you mean {" or ".join(near)}?' if near else
            f'is the module that has it in custom_imports, and default_scope right? It is {scope!r}')


def of_import(error: Exception) -> str | None:
    """What may help against an import of a pure Python config, which mmengine carries out where its name is used.

    An error of another kind that it met within the imported module is no matter of that line.
    """
    if not isinstance(error, ImportError) or not _passes(error, 'mmengine/config/lazy.py'):
        return None
    found = re.search(r'Failed to import (\w+) from (\w+)', str(error))
    name, package = found.groups() if found else ('', '')
    known = {each.__name__: each.__module__ for registry in _registries() for each in registry.module_dict.values()
             if each.__module__.startswith(package)}
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return (f'did you mean from {known[near[0]]} import {near[0]}?' if near else
            'correct that line of the config, or install what it imports')


def _of_recursion(error: Exception) -> str | None:
    if isinstance(error, RecursionError) and _passes(error, 'mmengine/config/'):
        return f'a part of the config refers to itself, as by update(); write {ASSIGN}'
    return None


def _passes(error: Exception, place: str) -> bool:
    """Whether an error came up through code of this place, a part of the path of a file."""
    return any(place in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _registries(kind: str | None = None) -> Iterator[Registry]:
    from mmengine import registry

    def below(each: Registry) -> Iterator[Registry]:
        yield each
        for child in each.children.values():
            yield from below(child)

    for each in vars(registry).values():
        if isinstance(each, Registry) and kind in (None, each.name):
            yield from below(each)


def to_file(text: str) -> str:
    """Write into the log file alone; return where that is, for the end of a message."""
    logger = MMLogger.get_current_instance()
    record = logging.LogRecord(logger.name, logging.DEBUG, __file__, 0, text, None, None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)
            return f' The traceback is in {handler.baseFilename}'
    return ''
