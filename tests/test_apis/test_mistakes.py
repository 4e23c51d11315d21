"""Mistakes of a tired user: each ends in one sentence with cause and cure and exit code 2, from every tool."""

import re
import shlex
import shutil
from collections import OrderedDict

import pytest
from mmengine.logging import MMLogger
from small_runs import CLASSIFIER, DETECTOR, make_pictures, write_run

from rkan_mm import cli
from rkan_mm.datasets.shapes import make_shapes

RKANET = "type='rkan_mm.RKANet',"
CONFIGS = {  # of one text in the detector's config, what stands there by mistake
    'model': ("type='RetinaNet'", "type='RetinNet'"),
    'unclosed': ("model = dict(", 'model = dict(('),
    'unnamed': ("randomness = dict(seed=0)", 'randomness = dict(seed=seeds)'),
    'import': ("imports=['rkan_mm']", "imports=['rkan_mn']"),
    'wrapper': ('optim_wrapper', 'optim_wraper'),
    'stage': (RKANET, f"{RKANET} stages=('layer5',),"),
    'basis': (RKANET, f"{RKANET} basis='bspline',"),
    'neck': ('in_channels=[4, 8, 16, 32]', 'in_channels=[4, 8, 16, 64]'),
    'transform': ("type='LoadAnnotations'", "type='LoadAnotations'"),
    'text': ('lr=0.001', "lr='0.001'"),
    'adam': ("type='SGD', lr=0.001", "type='AdamW', lr='1e-3'"),
    'metric': ("val_evaluator = dict(type='CocoMetric'", "val_evaluator = dict(type='CocoMetrics'"),
    'hook': ("type='IterTimerHook'", "type='EMAHok'"),
    'schedule': ('randomness', "param_scheduler = [dict(type='MultiStepLR', milestone=[8])]\nrandomness"),
    'optimizer': ("type='SGD'", "type='Sgd'"),
    'listed': ('test_evaluator = val_evaluator', 'test_evaluator = [val_evaluator]'),
    'unscaled': ("load[0], scale, dict(type='PackDetInputs', meta_keys=keys)",
                 "load[0], dict(type='PackDetInputs', meta_keys=keys[:-1])"),
    'classes': ('val_evaluator =', "val_dataloader['dataset']['metainfo'] = dict(classes=('car',))\nval_evaluator ="),
}
READ = '''
from mmengine.config import read_base
with read_base():
    from .det import *
from mmdet.models import ResNet
from rkan_mm.models import RKANet
'''
PURE = {  # over the detector's config, in pure Python
    'update': 'model.update(dict(backbone=dict(_delete_=True, type=RKANet, backbone=dict(type=ResNet, depth=18))))',
    'itself': 'model.update(dict(neck=dict(type=RKANet, backbone=model.neck)))',
    'broken': 'from broken_module import Net\nmodel.backbone.type = Net',
    'whole': 'model = dict(backbone=dict(type=RKANet, backbone=dict(type=ResNet, depth=18)))',
    'imported': 'from rkan_mm import RKANet as Net\nmodel.backbone.type = Net',
    'misspelt': 'from mmdet.models import RetinaHed\nmodel.backbone.type = RetinaHed',
    'style': '_base_ = "./update.py"',
}
ASSIGN = r'write model.backbone = dict.type=RKANet, backbone=model.backbone'
DET, CLS = 'det.py det.pth', 'cls.py cls.pth'
MISTAKES = {
    'train gone.py': "Config 'gone.py' does not exist",
    'train model.py': 'RetinNet is not in the mmdet::model registry .did you mean RetinaNet',
    'train unclosed.py': "Config 'unclosed.py' cannot be read: .*line ",
    'train unnamed.py': "cannot be read: NameError: name 'seeds' is not defined",
    'train import.py': 'Failed to import custom modules from .*rkan_mn',
    'train wrapper.py': 'has no optim_wrapper to train by; it has optim_wraper, is optim_wrapper meant',
    'train nodelete.py': "RKANet has no argument depth, .* write _delete_=True beside type='rkan_mm.RKANet'",
    'train stage.py': "no stage 'layer5' in ResNet; it has conv1, .*, layer4",
    'train basis.py': 'RKANet has no argument basis; it has backbone, stages, block',
    'train neck.py': 'to have 64 channels, but got 32 .*in_channels of the neck or head are not those that the part',
    'train transform.py': 'LoadAnotations is not in .*did you mean LoadAnnotations',
    'train text.py': "a text stands where a number belongs, such as lr='0.001' for lr=0.001",
    'train adam.py': "not supported between .*a text stands where a number belongs, such as lr='0.001' for lr=0.001",
    'train metric.py': 'CocoMetrics is not in .*did you mean CocoMetric',
    'train hook.py': 'EMAHok is not in .*did you mean EMAHook',
    'train schedule.py': "unexpected keyword argument 'milestone'",
    'train optimizer.py': 'is optim_wrapper.optimizer.type as torch spells it',
    'train classes.py': "has no category car, which metainfo.classes of the config name; it has disc, ",
    'train det.py --amp --cfg-options optim_wrapper.type=ApexOptimWrapper':
        '--amp puts AmpOptimWrapper in the place of optim_wrapper.type, and the config has ApexOptimWrapper there',
    'train notes.txt': 'Only py/yml/yaml/json type are supported',
    'train det.py --cfg-options train_cfg.max_epochs = 3': '--cfg-options takes KEY=VALUE, without spaces around "="',
    'train det.py --cfg-options data_root=2024_01': 'data_root=202401 is of type int, .* write ./, as in data_root=./2',
    'train det.py --cfg-options custom_hooks=[dict(type=EMAHook)]': 'takes no dict, .* write each of its keys, as in a',
    '''train det.py --cfg-options "custom_hooks=[{'type': 'EMAHook'}]"''': 'takes no dict, .* as in a.b=1, and within',
    '''train det.py --cfg-options "a.custom_keys={'backbone.bridges':dict(lr_mult=0.1)}"''': 'takes no dict, ',
    'train det.py --cfg-options custom_hooks=[EMAHook,dict(type=EMAHook)]': 'takes no dict, ',
    'train det.py --cfg-options optimizer.lr=0.1': 'did you mean optim_wrapper.optimizer.lr',
    'train det.py --cfg-options train_dataloader.batch_size=0': 'batch_size should be a positive integer value',
    'train det.py --cfg-options train_cfg.max_epochs=two': "invalid literal for int.*'two' .a text stands where",
    'train det.py --cfg-options data_root=gone': "CocoDataset: data root 'gone' does not exist",
    'train det.py --cfg-options load_from=notes.pth': "'notes.pth' is no checkpoint: torch has not saved this file",
    'train det.py --cfg-options model.bbox_head.num_classes=80': 'num_classes=80; .* has 5 .*Set model.bbox_head',
    'train det.py --resume gone.pth': "Checkpoint 'gone.pth' does not exist; . has cls.pth, det.pth, notes.pth",
    'train det.py --resume det.pth': 'holds weights alone, no state of a training .* --cfg-options load_from=det.pth',
    'train det.py --work-dir notes.txt': "The work dir 'notes.txt' cannot be written to .*choose another by --work-dir",
    'train det.py --auto-scale-lr': 'does not say for which auto_scale_lr.base_batch_size',
    'train det.py --lr 0.1': 'unrecognized arguments: --lr 0.1; for --lr: --cfg-options optim_wrapper.optimizer.lr',
    'train det.py --seed 1 --gpu-ids 0': 'for --seed: --cfg-options randomness.seed=N; for --gpu-ids: CUDA_VISIBLE_DEV',
    'train': 'the following arguments are required: config',
    'test det.py': 'the following arguments are required: checkpoint',
    'test det.pth det.py': 'Only py/yml/yaml/json type are supported .*the config comes first, then the checkpoint',
    'train shapes': "Config 'shapes' is a folder, and has no config in it",
    'train .': "Config '.' is a folder: give one of its files, ",
    'train cls.py --cfg-options train_dataloader.dataset.with_label=False':
        'the pictures have no labels: look at with_label and ann_file of their data set',
    'test det.py cls.pth': 'entries of the model are not in it .*give the config that it was trained with, or --allow',
    'test cls.py det.pth': "'det.pth' fits nothing of the model",
    f'test {DET} --out res.json': "'res.json' must end in .pkl or .pickle, .* by --out-item metrics",
    'test det.py .': "Checkpoint '.' is a folder; give one of its files, such as cls.pth, det.pth, notes.pth",
    'test det.py shapes': "Checkpoint 'shapes' is a folder: give the name of a file",
    'infer det.py . shapes/val': "Checkpoint '.' is a folder; give one of its files, such as cls.pth",
    'infer det.py shapes shapes/val': "Checkpoint 'shapes' is a folder: give the name of a file",
    'convert torchvision shapes out.pth --config det.py': "Checkpoint 'shapes' is a folder: give the name of a file",
    f'test {DET} --amp': "an operation runs in float32 alone here, such as mmcv's NMS and RoIAlign on a CPU: "
                          'leave --amp out',
    f'test {DET} --eval bbox': 'for --eval: the metrics are those of test_evaluator, e.g. --cfg-options',
    'test listed.py det.pth --cfg-options test_evaluator.metric=bbox':
        'list indices must be integers .*a part of it is a list: write its number, as in test_evaluator.0.metric=bbox',
    'test unscaled.py det.pth': 'as a trial with .* shows: AssertionError: assert .*scale_factor',
    f'test {DET} --cfg-options test_evaluator.metric=mAP': "metric should be one of 'bbox', 'segm', 'proposal'",
    f'test {DET} --cfg-options test_evaluator.metric=segm': 'the model predicts no masks: leave segm out of metric',
    f'test {CLS} --classwise': 'no test evaluator of the config has an argument classwise, as CocoMetric has; t',
    f'infer {DET} gone.jpg': "Image 'gone.jpg' does not exist",
    f'infer {DET} shapes/annotations': "Folder 'shapes/annotations' has no image",
    'infer det.py cls.pth shapes/val': 'entries of the model are not in it',
    f'infer {DET} shapes/val --device gpu': 'devices are called cpu, cuda or cuda:0',
    f'infer {DET} shapes/val --batch-size 0': "--batch-size: expected a whole number of at least 1, got '0'",
    f'infer {DET} shapes/val --out-dir notes.txt': "--out-dir 'notes.txt' cannot be made .*choose another",
    'convert torchvison det.pth out.pth': "invalid choice: 'torchvison'",
    'convert torchvision det.pth out.pth --config det.py': 'none of the source keys is one of the model',
    'convert torchvision det.pth out.pth': '--config is missing',
    'convert timm cls.pth out.pth --config cls.py': 'of 100 entries of the backbone are not in the source, such as',
    'table rows.yml': "Table 'rows.yml', row 1: it has no name and config",
    'table seeds.yml': "Table 'seeds.yml': seeds are a list of whole numbers, such as .0, 1, 2., not 3",
    'table twice.yml': "two rows are called 'a'",
    'table torn.yml': "Table 'torn.yml' is no yaml: ",
    'table notes.txt': "Table 'notes.txt' has no title, metric, seeds, rows",
    'table gone.yml': "Table 'gone.yml' does not exist",
    f'inspect {CLS}': 'ImageClassifier has no KAN layer',
    'memory gone.py': "Config 'gone.py' does not exist",
    'subset-coco gone.json out.json': 'gone.json',
    'train det.py --cfg-options train_cfg.max_epochs=0': 'train_cfg.max_epochs=0: nothing would be trained. Give at le',
    'train det.py --cfg-options train_cfg.val_interval=0': 'val_interval=0: give at least 1, or --no-validate',
    'train det.py --cfg-options train_dataloader.batch_size=9 train_dataloader.drop_last=True':
        'batch_size=9 with drop_last=True leaves no batch of 2 images: lower batch_size',
    'train det.py --cfg-options default_hooks.checkpoint.save_best=loss': 'waits for loss, and the validation gives co',
    'train det.py --cfg-options wanted_metrics=[coco/AP]': 'waits for coco/AP, and the validation gives coco',
    'train cls.py --cfg-options custom_hooks.type=EMAHook': 'custom_hooks is of type ConfigDict, .*wants a list: custo',
    'train det.py --cfg-options model.data_preprocessor.mean=[1,2]': 'mean and std should be both None or tuple. The',
    'train det.py --cfg-options model.neck.num_outs=3': 'AssertionError: assert ',
    'train det.py --cfg-options train_cfg=3': "train_cfg is of type int, '3'; mmengine wants a dict",
    'train det.py --cfg-options preflight=False': 'one for each check, such as preflight.trial=False',
    'train det.py --cfg-options launcher=pytorch': '--cfg-options launcher changes nothing here: give --launcher',
    'train det.py --cfg-options custom_imports.imports=gone custom_imports.allow_failed_imports=False':
        'ImportError: Failed to import gone',
    'train det.py --cfg-options train_dataloader.dataset.pipeline=[]': 'let it end with PackDetInputs or PackInputs',
    'train det.py --launcher pytorch': 'start it by torchrun --nproc-per-node N, or leave --launcher out',
    'train copied.py': "No such file .*mask-rcnn_r50_fpn.py' .a base of an installed mm is written with its package",
    'train named.py': 'retinanet_r50.py" does not exist .a base of an installed mm is written with its package, folder',
    'train packaged.py': 'does not support to load mmdetection config .a base of an installed mm is written with its p',
    'train cls.py --cfg-options default_scope=mmdet': 'mmpretrain has it: write mmpretrain.ImageClassifier, or is def',
    f'test {DET} --interval 0 --show-dir drawn': "argument --interval: expected a whole number of at least 1, got '0'",
    f'test {DET} --out notes.txt/a.pkl': "--out: 'notes.txt' cannot be written .Not a directory.: choose another",
    'train det.py --cfg-options val_evaluator.outfile_prefix=notes.txt/a':
        "val_evaluator.outfile_prefix='notes.txt/a' cannot be written .Not a directory.: choose another",
    'train det.py --cfg-options default_hooks.checkpoint.out_dir=notes.txt':
        "default_hooks.checkpoint.out_dir='notes.txt' cannot be written .Not a directory.: choose another",
    f'test {DET} --cfg-options test_evaluator.outfile_prefix=notes.txt/a': 'cannot be written .Not a directory.',
    f'test {DET} --cfg-options model.test_cfg.score_thr=2': 'score_thr=2 leaves no prediction: scores are from 0 to 1',
    f'test {DET} --cfg-options test_evaluator.metric=[]': 'metric is empty, and nothing would be measured',
    f'test {DET} --cfg-options test_evaluator.metric_items=[AP]': '.metric_items are such as mAP',
    f'test {DET} --cfg-options test_dataloader.sampler.type=InfiniteSampler': 'The test would never end: its sampler',
    f'test {DET} --cfg-options test_dataloader.batch_size=3 test_dataloader.drop_last=True':
        'The test would leave out 2 of 2 images: set drop_last=False',
    f'infer {DET} shapes/val --score-thr 2': "--score-thr: expected a number from 0 to 1, got '2'",
    f'infer {CLS} pictures/val/cat --score-thr 0.5': '--score-thr is of detectors; all that a model of mmpretrain pred',
    f'export {CLS} out.onnx --eval-images 0': '--eval-images: expected a whole number of at least 1',
    f'export {CLS} out.onnx --float-parts (': "--float-parts: '.' is no regular expression: missing",
    f'export {CLS} out.onnx --cfg-options a=b c': "--cfg-options takes KEY=VALUE, .*and got 'c'",
    'memory cls.py': 'cls.py is of mmpretrain; the memory of detectors of mmdet is counted',
    'memory det.py --batch 0': '--batch: expected a whole number of at least 1',
    'benchmark gone.py': "Config 'gone.py' does not exist",
    'benchmark cls.py': 'The backbone is ResNet; only a RKANet has a plain one inside. .*--baseline CONFIG',
    'benchmark unclosed.py': "Config 'unclosed.py' cannot be read",
    'benchmark det.py --rounds 0': "--rounds: expected a whole number of at least 1, got '0'",
    'benchmark det.py --shape 1 3 64': 'argument --shape: expected 4 arguments',
    'benchmark det.py --cfg-options backbone.backbone.depth=50': 'did you mean model.backbone.backbone.depth',
    'benchmark det.py --batch 8': 'unrecognized arguments: --batch 8',
    'benchmark det.py --out notes.txt/a.json': "--out: 'notes.txt' cannot be written",
    'benchmark-layers kan': 'no rows kan; there are shared, conv, linear',
    'benchmark-layers linear --threads 0': '--threads: expected a whole number of at least 1',
    'benchmark-steps gone': "Config 'gone' does not exist",
    'make-shapes new --num-train 0': '--num-train: expected a whole number of at least 1',
    'make-shapes new --size 32': '--size: expected a whole number of at least 64',
    'make-shapes new --seed -1': '--seed: expected a whole number of at least 0',
    'make-shapes pictures': 'pictures exists and holds no shapes data set; name another folder',
    'make-shapes notes.txt': "'notes.txt' cannot be written .Not a directory.: choose another",
    'demo --config cls.py': 'shows masks and the AP of its validation: take a config with data_root, whose val_ev',
    'subset-coco shapes/shapes.json out.json': "shapes/shapes.json is no COCO json of instances .KeyError: 'images'",
    'subset-coco shapes/annotations/val.json out.json --num-images 0': 'expected a whole number of at least 1',
    'train update.py': f'RKANet has no argument _delete_; .* in pure Python, where update.* keeps .*{ASSIGN}',
    'train itself.py': f'maximum recursion depth exceeded.*a part of the config refers to itself, as by upd.*{ASSIGN}',
    'train whole.py': f'must contain the key "type".* replaces all that the base has: {ASSIGN}',
    'train typeless.py': r'must contain the key "type".*\(a part of it has no type\)',
    'train style.py': 'one config has _base_, the other is in pure Python: write both in one way',
    'train imported.py': 'Failed to import RKANet from rkan_mm .*did you mean from rkan_mm.models.* import RKANet',
    'test imported.py det.pth': 'did you mean from rkan_mm.models.* import RKANet',
    'inspect misspelt.py det.pth': 'did you mean from mmdet.models.* import RetinaHead',
    'benchmark misspelt.py': 'did you mean from mmdet.models.* import RetinaHead',
    'inspect model.py det.pth': 'The model cannot be built: .*did you mean RetinaNet',
    'export model.py det.pth out.onnx': 'The model cannot be built: .*did you mean RetinaNet',
    'memory model.py': 'The model cannot be built: .*did you mean RetinaNet',
    'benchmark basis.py': "basis.py cannot be measured: .*unexpected keyword argument 'basis'",
    'benchmark det.py --shape 1 64 64 3': 'det.py cannot be measured: .*to have 3 channels, but got 64',
    'export notes.json det.pth out.onnx': "The model cannot be built: .*no attribute 'model'",
    'benchmark notes.json': "Config 'notes.json' has no model to measure",
    f'test {DET} --work-dir notes.txt': "The work dir 'notes.txt' cannot be written to .*choose another by --work-dir",
    'train det.py --cfg-options log_level=info': 'levels are written in capitals, such as INFO',
    'trian det.py': "no command 'trian'; did you mean 'train'",
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What a user may have in a folder."""
    path = tmp_path_factory.mktemp('user')
    make_shapes(path / 'shapes', num_train=2, num_val=2, size=64)
    make_pictures(path / 'pictures')
    for name, text in (('det', DETECTOR), ('cls', CLASSIFIER)):
        write_run(path, name, text)
    for name, (right, wrong) in CONFIGS.items():
        assert right in DETECTOR
        (path / f'{name}.py').write_text(DETECTOR.replace(right, wrong))
    for name, text in PURE.items():
        (path / f'{name}.py').write_text((READ if name != 'style' else '') + f'{text}\n')
    for name, base in (('copied', '../_base_/models/mask-rcnn_r50_fpn.py'),
                       ('named', 'mmdet::retinanet/retinanet_r50.py'),
                       ('packaged', 'mmdetection::retinanet/retinanet_r50_fpn_1x_coco.py')):
        (path / f'{name}.py').write_text(f'_base_ = {base!r}')
    (path / 'notes.json').write_text('{}')
    (path / 'broken_module.py').write_text('Net = net')
    (path / 'typeless.py').write_text(DETECTOR.replace("type='RetinaNet', ", ''))
    (path / 'nodelete.py').write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\nmodel = dict(backbone=dict(\n    "
        "type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))\n")
    head = 'title: T\nmetric: accuracy/top1\n'
    for name, rest in (('rows', 'seeds: [0]\nrows: [a.py]'), ('seeds', 'seeds: 3\nrows: [{name: a, config: cls.py}]'),
                       ('twice', 'seeds: [0]\nrows: [{name: a, config: cls.py}, {name: a, config: det.py}]'),
                       ('torn', 'rows: [')):
        (path / f'{name}.yml').write_text(head + rest)
    for name in ('notes.txt', 'notes.pth'):
        (path / name).write_text('no config, no checkpoint')
    return path


@pytest.fixture
def own_loggers(monkeypatch):
    """Loggers of mmengine for this test alone; those of others have streams that are closed."""
    loggers = OrderedDict()
    monkeypatch.setattr(MMLogger, '_instance_dict', loggers)
    yield
    for logger in loggers.values():
        for handler in logger.handlers:
            handler.close()


@pytest.mark.parametrize('line', MISTAKES)
@pytest.mark.usefixtures('own_loggers')
@pytest.mark.filterwarnings('ignore:Exception ignored in. <_io.FileIO')  # which mmengine leaves open at an error
def test_one_sentence(folder, line, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        cli.main(shlex.split(line))
    shown = stopped.value.code if isinstance(stopped.value.code, str) else capfd.readouterr().err
    assert stopped.value.code == 2 or line.startswith('trian')
    assert 'Traceback' not in shown
    assert re.search(MISTAKES[line], shown.replace('\n', ' ')), shown
    shutil.rmtree('work_dirs', ignore_errors=True)


@pytest.mark.usefixtures('own_loggers')
def test_an_error_in_a_module_of_the_user_keeps_its_traceback(folder, monkeypatch, capfd):
    """No line of the config is at fault."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for line, error in (('train broken.py', NameError), ('infer broken.py det.pth shapes/val', NameError),
                        ('train det.py --cfg-options custom_imports.imports=broken_module', SystemExit)):
        with pytest.raises(error, match="name 'net' is not defined" if error is NameError else '2'):
            cli.main(shlex.split(line))
        shown = capfd.readouterr().err
        assert error is NameError or re.search("broken_module.py.*NameError: name 'net'", shown, re.DOTALL)
    shutil.rmtree('work_dirs', ignore_errors=True)
