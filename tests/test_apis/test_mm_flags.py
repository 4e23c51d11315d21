"""The options of mm's own tools, on a small detector and a small classifier."""

import json
import pickle
from argparse import Namespace

import cv2
import pytest
import torch
from conftest import ROOT
from mmcv.transforms import Compose
from mmdet.engine.hooks import DetVisualizationHook
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from small_runs import CLASSIFIER, DETECTOR, write_run

from rkan_mm.apis import convert, loading, runner
from rkan_mm.apis.testing_options import _flipped, _show, _use_tta, check_test
from rkan_mm.preflight import PreflightError


@pytest.fixture(scope='module')
def detector(small_data, tmp_path_factory):
    """Config and untrained checkpoint of a detector, on data that are there."""
    return write_run(tmp_path_factory.mktemp('detector'), 'detector',
                     DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))))


@pytest.fixture(scope='module')
def classifier(small_data, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('classifier'), 'classifier',
                     CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures'))))


@pytest.mark.parametrize('kind', ['detector', 'classifier'])
def test_test_time_augmentation(request, tmp_path, kind):
    argv = [*request.getfixturevalue(kind), '--work-dir', str(tmp_path), '--no-pin-memory']
    out = tmp_path / 'metrics.json'
    plain, flipped = runner.test(argv), runner.test([*argv, '--tta', '--out', str(out), '--out-item', 'metrics'])
    assert set(plain) == set(flipped)
    assert json.loads(out.read_text()) == flipped


def test_a_flipped_picture_and_the_mean_of_scores(classifier, tmp_path):
    """What --tta gives is the mean of both pictures' scores, computed here."""
    argv = [*classifier, '--work-dir', str(tmp_path), '--out', str(tmp_path / 'out.pkl'), '--tta']
    runner.test(argv)
    found = pickle.loads((tmp_path / 'out.pkl').read_bytes())[0]
    cfg = Config.fromfile(classifier[0])
    model = MODELS.build(dict(cfg.model, _scope_='mmpretrain'))
    model.load_state_dict(torch.load(classifier[1], weights_only=True)['state_dict'])
    model.eval()
    image = torch.from_numpy(cv2.imread(found['img_path'])).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        scores = [model.head.predict(model.extract_feat(x))[0].pred_score for x in (image, image.flip(3))]
    torch.testing.assert_close(found['pred_score'], sum(scores) / 2)


def test_boxes_of_a_detector_with_masks_are_merged(small_data):
    """As mmdet does without the masks, at which its own DetTTAModel stops."""
    cfg = loading.load_config(str(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), {'test_evaluator.metric': 'bbox'})
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    _use_tta(cfg)
    pipeline = [dict(type='mmdet.LoadImageFromFile'), dict(type='mmdet.Resize', scale_factor=1.0),
                dict(type='mmdet.PackDetInputs')]
    picture = str(small_data / 'shapes/val/000000.png')
    view = Compose(_flipped(pipeline, detector=True))(dict(img_path=picture, img_id=0))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        ours = model.test_step(pseudo_collate([view]))[0].pred_instances
        detector = model.module
        assert 'masks' in detector.test_step(dict(inputs=[view['inputs'][0]], data_samples=[view['data_samples'][0]]))[
            0].pred_instances
        detector.roi_head.mask_head = None
        theirs = MODELS.build(dict(type='DetTTAModel', module=detector, tta_cfg=cfg.tta_model.tta_cfg)).test_step(
            pseudo_collate([view]))[0].pred_instances
    assert len(ours) > 20
    assert 'masks' not in ours
    for name in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_flips_come_before_borders_and_annotations(small_data):
    """Otherwise a flipped picture has its border on the other side, and its objects where they are not."""
    pipeline = [dict(type='mmdet.LoadImageFromFile'), dict(type='mmdet.Resize', scale=(90, 90), keep_ratio=True),
                dict(type='mmdet.Pad', size_divisor=32), dict(type='mmdet.LoadAnnotations', with_bbox=True),
                dict(type='mmdet.PackDetInputs')]
    box = [5., 10., 30., 40.]
    views = Compose(_flipped(pipeline, detector=True))(dict(
        img_path=str(small_data / 'shapes/val/000000.png'), instances=[dict(bbox=box, bbox_label=0, ignore_flag=0)]))
    plain, mirrored = sorted(zip(views['inputs'], views['data_samples'], strict=True), key=lambda view: view[1].flip)
    assert plain[0].shape[1:] == (96, 96)
    assert mirrored[1].flip != plain[1].flip
    torch.testing.assert_close(mirrored[0][:, :90, :90].flip(2), plain[0][:, :90, :90])
    for _, sample in (plain, mirrored):
        assert sample.gt_instances.bboxes.tensor.tolist() == [box]


def test_predictions_of_tta_configs(tmp_path):
    for name, last in (('voc/faster-rcnn_rkanet50_fpn_1x_voc0712', 6),
                       ('imagenet/rkan-resnet50_1xb128-100e_in1k', 2)):
        cfg = loading.load_config(str(ROOT / f'configs/{name}.py'))
        *_, augmentation = cfg.tta_pipeline
        views = 1
        for transforms in augmentation.transforms:
            views *= len(transforms)
        assert views == last
        assert cfg.tta_model.type.endswith(('DetTTAModel', 'AverageClsScoreTTA'))


def test_predictions_of_pictures_without_labels(classifier, tmp_path):
    argv = [*classifier, '--work-dir', str(tmp_path), '--out', str(tmp_path / 'out.pkl'), '--cfg-options',
            'test_dataloader.dataset.with_label=False']
    with pytest.raises(PreflightError, match=r'have no labels: .* to predict alone, test_evaluator=\[\] with --out'):
        runner.test(argv)
    assert runner.test([*argv, 'test_evaluator=[]']) == {}
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 6
    drawing = [f'default_hooks.visualization.{each}' for each in (
        'type=VisualizationHook', 'enable=True', f'out_dir={tmp_path}/drawn')]
    drawing.append('visualizer.type=UniversalVisualizer')
    assert runner.test([*argv[:4], *argv[6:], 'test_evaluator=[]', *drawing]) == {}
    assert list(tmp_path.glob('drawn/*.png'))


def test_views_of_a_picture_are_not_drawn(classifier, tmp_path):
    with pytest.raises(PreflightError, match='--tta: mmpretrain cannot draw several views of one picture. Leave out'):
        runner.test([*classifier, '--work-dir', str(tmp_path), '--tta', '--show-dir', 'drawn'])


@pytest.mark.parametrize(('flags', 'message'), [
    (['--out-item', 'metrics'], '--out-item: name the file by --out.'),
    (['--out', 'a.json'], r"--out: 'a.json' must end in .pkl or .pickle, for predictions; metrics go into .json b"),
    (['--out', 'a.txt', '--out-item', 'metrics'], "'a.txt' must end in .json or .yaml or .yml or .pkl, for metrics"),
    (['--show'], '--show needs a display and this machine has none: take --show-dir FOLDER'),
    (['--tta', '--cfg-options', 'test_evaluator.metric=[bbox,segm]'], 'mmdet merges boxes alone, .* test_evaluator.m'),
    (['--cfg-options', 'test_evaluator=[]'], 'test_evaluator is empty, and nothing would be measured, written or '
     'shown: give a metric, or add --out FILE.pkl'),
    (['--out', 'a.json', '--out-item', 'metrics', '--cfg-options', 'test_evaluator=[]'], 'test_evaluator is empty'),
    (['--cfg-options', 'test_dataloader=None'], 'The config has no test_dataloader, test_evaluator and test_cfg: to'),
])
def test_options_that_contradict(detector, monkeypatch, tmp_path, flags, message):
    monkeypatch.setattr('sys.platform', 'linux')
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PreflightError, match=message):
        runner.test([*detector, '--work-dir', str(tmp_path), *flags])


def test_an_evaluator_that_is_an_empty_dict():
    with pytest.raises(PreflightError, match='The config has no test_dataloader, test_evaluator and test_cfg: to'):
        check_test(Config(dict(test_dataloader=dict(batch_size=1), test_evaluator={}, test_cfg={})))


def test_pictures_are_shown_and_drawn(detector, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr('mmengine.visualization.Visualizer.show', lambda self, *args, **kwargs: shown.append(kwargs))
    runner.test([*detector, '--work-dir', str(tmp_path), '--show', '--wait-time', '0.5', '--show-dir', 'drawn'])
    assert [each['wait_time'] for each in shown] == [0.5, 0.5]
    assert len(list(tmp_path.rglob('drawn/*.png'))) == 2


@HOOKS.register_module()
class OwnDrawing(DetVisualizationHook):
    drawn = 0

    def after_test_iter(self, *args, **kwargs):
        OwnDrawing.drawn += 1
        super().after_test_iter(*args, **kwargs)


def test_drawing_leaves_the_hook_of_a_config(detector, tmp_path):
    runner.test([*detector, '--work-dir', str(tmp_path), '--show-dir', 'drawn', '--cfg-options',
                 'default_hooks.visualization.type=OwnDrawing', 'default_hooks.visualization.score_thr=0.5'])
    assert OwnDrawing.drawn == len(list(tmp_path.rglob('drawn/*.png'))) == 2


@HOOKS.register_module()
class HandingOn(DetVisualizationHook):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@HOOKS.register_module()
class OfFewWords(Hook):
    def __init__(self, enable=False, out_dir=None):
        pass


@pytest.mark.parametrize(('hook', 'options', 'folder'), [
    ('mmdet.TrackVisualizationHook', dict(draw=True, frame_interval=3, show=False, wait_time=2,
                                          test_out_dir='here'), None),
    ('mmpretrain.VisualizationHook', dict(enable=True, interval=3, show=False, wait_time=2, out_dir='here'), None),
    ('HandingOn', dict(draw=True, interval=3, show=False, wait_time=2, test_out_dir='here'), None),
    ('OfFewWords', dict(enable=True, out_dir='here'), None),
    ('mmengine.IterTimerHook', {}, 'here'),  # as those that draw into the folder of the visualizer
])
def test_hooks_that_draw_are_asked_in_their_words(hook, options, folder):
    cfg = Config(dict(default_hooks=dict(visualization=dict(type=hook)), visualizer=dict(type='Visualizer')))
    _show(cfg, Namespace(show=False, wait_time=2, interval=3, show_dir='here'))
    assert cfg.default_hooks.visualization == dict(type=hook, **options)
    assert cfg.visualizer.get('save_dir') == folder


def test_half_precision_in_a_test(classifier, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr('mmengine.runner.loops.autocast', lambda enabled=True, **kwargs: seen.append(enabled)
                        or torch.autocast('cpu', enabled=False))
    runner.test([*classifier, '--work-dir', str(tmp_path), '--amp', '--cfg-options', 'preflight.trial=False'])
    assert set(seen) == {True}


def test_workers_and_pinned_memory(classifier, tmp_path):
    trained = runner.train([classifier[0], '--work-dir', str(tmp_path), '--no-pin-memory', '--no-persistent-workers',
                            '--no-validate', '--cfg-options', 'train_dataloader.num_workers=1',
                            'train_dataloader.persistent_workers=True'])
    assert not trained.train_dataloader.persistent_workers
    assert not trained.train_dataloader.pin_memory
    cfg = loading.load_config(classifier[0], {'train_dataloader.persistent_workers': True})
    loading.set_loaders(cfg, pin_memory=True)
    assert cfg.train_dataloader.persistent_workers is False  # there are no workers


def test_options_of_a_conversion(tmp_path, classifier):
    import torchvision
    torch.save(torchvision.models.resnet18(num_classes=7, width_per_group=64).state_dict(), tmp_path / 'in.pth')
    options = ['model.backbone.base_channels=64', 'model.backbone.stem_channels=64', 'model.head.num_classes=7',
               'model.head.in_channels=512']
    convert.main(['torchvision', str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), '--config', classifier[0],
                  '--cfg-options', *options])
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']['head.fc.weight'].shape == (7, 512)


@pytest.mark.parametrize(('option', 'message'), [
    ('optim_wraper.optimizer.lr', r"no 'optim_wraper', and mmengine would not read it; did you mean optim_wrap"),
    ('backbone.depth', r'did you mean model.backbone.depth\? To run all the same: .* preflight.options=False'),
    ('val_dataloder.batch_size', 'did you mean val_dataloader.batch_size'),
])
def test_options_with_a_slip(classifier, option, message):
    with pytest.raises(PreflightError, match=message):
        loading.load_config(classifier[0], {option: 1})
    assert loading.load_config(classifier[0], {option: 1, 'preflight.options': False}).get(option.partition('.')[0])


def test_options_that_only_the_users_own_code_reads(classifier, capsys):
    assert loading.load_config(classifier[0], {'my_hooks_threshold': 0.5}).my_hooks_threshold == 0.5
    assert "the config has no 'my_hooks_threshold', and mmengine would not read it." in capsys.readouterr().out
    loading.load_config(classifier[0], {'pipeline': []})
    assert "'pipeline' is a variable of the config file, which mmengine does not read" in capsys.readouterr().out
    loading.load_config(classifier[0], {'data_fingerprints.train': 'x', 'optim_wrapper.type': 'A'})
    assert not capsys.readouterr().out


def test_a_file_of_weights_alone(classifier, tmp_path, monkeypatch):
    config, checkpoint = classifier
    told = []
    monkeypatch.setattr('mmengine.runner.checkpoint.print_log', lambda text, *args, **kwargs: told.append(text))
    weights = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save(weights, tmp_path / 'weights.pth')
    found = runner.test([config, str(tmp_path / 'weights.pth'), '--work-dir', str(tmp_path / 'work')])
    assert found == runner.test([config, checkpoint, '--work-dir', str(tmp_path / 'work')])
    assert not any('do not match' in text for text in told)


def test_keys_with_dots_in_them(classifier, tmp_path):
    """Of parts of names of parameters, as the page on backbones gives them."""
    (tmp_path / 'own.py').write_text(
        f"_base_ = {classifier[0]!r}\noptim_wrapper = dict(paramwise_cfg=dict(custom_keys={{'backbone': dict("
        "lr_mult=0.1), 'backbone.layer4': dict(lr_mult=0.5, decay_mult=0)}))\n")
    path = 'optim_wrapper.paramwise_cfg.custom_keys'
    options = {f'{path}.backbone.layer4.lr_mult': 2, f'{path}.backbone.lr_mult': 3, f'{path}.head.fc.lr_mult': 4}
    found = loading.load_config(str(tmp_path / 'own.py'), options).optim_wrapper.paramwise_cfg.custom_keys
    assert found == {'backbone': dict(lr_mult=3), 'backbone.layer4': dict(lr_mult=2, decay_mult=0),
                     'head.fc': dict(lr_mult=4)}
    found = loading.load_config(str(tmp_path / 'own.py'), {f'{path}._delete_': True, **options})
    assert found.optim_wrapper.paramwise_cfg.custom_keys['backbone.layer4'] == dict(lr_mult=2)


def test_test_time_augmentation_of_data_of_ones_own():
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    cfg = Config(dict(default_scope='mmpretrain', model=dict(type='ImageClassifier'), test_evaluator=dict(
        type='Accuracy'), test_dataloader=dict(dataset=dict(type='OwnPictures', path='lmdb', pipeline=pipeline))))
    _use_tta(cfg)
    assert [step['type'] for step in cfg.test_dataloader.dataset.pipeline] == ['LoadImageFromFile', 'TestTimeAug']
