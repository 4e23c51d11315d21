"""What a training cannot make good is told in red: frozen random weights, pixels of another scale or order."""

import pytest
import torch
from mmengine.model import PretrainedInit
from small_runs import CLASSIFIER, DETECTOR

from rkan_mm.models import RKANet
from rkan_mm.preflight.beginnings import _kept

INNER = "model['backbone']['backbone'].update({})\n"
PREPROCESSOR = "model['data_preprocessor'].update({})\n"
NORMALIZE = "dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])"
PIPELINE = "{}_dataloader['dataset'] = dict({}_dataloader['dataset'], pipeline={})\n"
TOLD = {
    'frozen at random': (DETECTOR, INNER.format('frozen_stages=1'), (
        'model.backbone.backbone (ResNet) begins with random weights: frozen_stages=1 keeps some as they are. Load '
        'weights by its init_cfg or by load_from, or set frozen_stages=-1.')),
    'norms without statistics': (DETECTOR, INNER.format('norm_eval=True, frozen_stages=0'), (
        'norm_eval=True keeps its norms at mean 0 and variance 1. Load weights by its init_cfg or by load_from, or set '
        'frozen_stages=-1 and norm_eval=False.')),
    'mean and std of other pixels': (
        DETECTOR, PREPROCESSOR.format('mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]'),
        'DetDataPreprocessor divides pixels of 0 to 255 by std=[0.229, 0.224, 0.225], which is of pixels of 0 to 1'),
    'a mean of RGB for BGR': (
        DETECTOR, PREPROCESSOR.format('mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]'),
        'DetDataPreprocessor takes the mean of RGB, [123.675, 116.28, 103.53], from pictures in BGR: set '
        'bgr_to_rgb=True, or turn mean and std round.'),
    'a mean of BGR for RGB': (
        CLASSIFIER, "model['data_preprocessor'] = dict(mean=[103.53, 116.28, 123.675], std=[1.0] * 3, to_rgb=True)\n",
        'ClsDataPreprocessor takes the mean of BGR, [103.53, 116.28, 123.675], from pictures in RGB: set to_rgb=False'),
    'the same in a pipeline': (
        CLASSIFIER, "pipeline.insert(1, dict(type='Normalize', mean=[0.5] * 3, std=[0.5] * 3))\n",
        'Normalize divides pixels of 0 to 255 by std=[0.5, 0.5, 0.5], which is of pixels of 0 to 1: give mean and'),
    'normalized twice': (
        CLASSIFIER, f"pipeline.insert(1, {NORMALIZE})\nmodel['data_preprocessor'] = dict(mean=[127.5] * 3, "
        'std=[127.5] * 3)\n',
        'Pictures are normalized twice, by Normalize in a pipeline and by ClsDataPreprocessor: leave Normalize out.'),
    'normalized in training alone': (
        CLASSIFIER, PIPELINE.format('train', 'train', f'[pipeline[0], {NORMALIZE}, pipeline[1]]'),
        'Pictures of the validation are made otherwise than those of the training, with which the model learns: '
        'Normalize(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True) is of one alone.'),
    'grey in validation alone': (
        CLASSIFIER + "model['backbone']['in_channels'] = 3\n", PIPELINE.format(
            'val', 'val', "[dict(pipeline[0], color_type='unchanged'), pipeline[1]]"),
        "learns: LoadImageFromFile(color_type='color'), LoadImageFromFile(color_type='unchanged') is of one alone."),
    'class by class': (
        CLASSIFIER, "train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=False))\n",
        "The training takes its pictures class by class: give train_dataloader.sampler=dict(type='DefaultSampler', "),
    'no sampler': (CLASSIFIER, 'train_dataloader.update(sampler=None)\n',
                   'The training takes its pictures class by class'),
    'some pictures twice': (
        CLASSIFIER, "val_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[val_dataloader['dataset'], "
        "dict(val_dataloader['dataset'], indices=[0, 2])])\n",
        '2 of 6 pictures of the validation are counted more than once, such as '),
    'as many places as classes': (CLASSIFIER, "val_evaluator.update(topk=(1, 3))\n",
                                  'top3 of the validation will be 100: there are 3 classes.'),
}
NOT_TOLD = {
    'a scale to 0 to 1': (DETECTOR, PREPROCESSOR.format('mean=[0] * 3, std=[255] * 3')),
    'a mean of RGB for RGB': (DETECTOR, PREPROCESSOR.format(
        'mean=[123.68, 116.78, 103.94], std=[58.4, 57.12, 57.38], bgr_to_rgb=True')),
    'a mean of BGR for BGR': (DETECTOR, PREPROCESSOR.format('mean=[103.53, 116.28, 123.675], std=[1.0] * 3')),
    'none': (DETECTOR, PREPROCESSOR.format('mean=[0] * 3, std=[1] * 3')),
    'the same Normalize in both': (CLASSIFIER, f'pipeline.insert(1, {NORMALIZE})\n'),
    'in turns': (CLASSIFIER, "train_dataloader['dataset'] = dict(train_dataloader['dataset'], indices=[0, 2, 4, 1])\n"
                 "train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=False))\n"),
    'all pictures twice': (
        CLASSIFIER, "val_dataloader['dataset'] = dict(type='RepeatDataset', times=2, dataset=val_dataloader['dataset'])"
        '\n'),
    'frozen blocks of ours': (DETECTOR, "model['backbone'].update(frozen_stages=['layer4'], norm_eval=True)\n"),
}


@pytest.mark.parametrize('case', TOLD)
def test_in_red(printed, case):
    text, lines, said = TOLD[case]
    lines_in_red = [line for line in printed(text, lines).splitlines() if line.startswith('WARNING: ')]
    assert any(said in line for line in lines_in_red), lines_in_red


@pytest.mark.parametrize('case', NOT_TOLD)
def test_nothing_is_said(printed, case):
    assert 'WARNING: ' not in printed(*NOT_TOLD[case])


@pytest.mark.parametrize('how', ['load_from', 'init_cfg'])
def test_loaded_weights_may_be_frozen(printed, tmp_path, how):
    printed(DETECTOR, '')
    weights = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)['state_dict']
    if how == 'init_cfg':
        inner = 'backbone.backbone.'
        weights = {name.removeprefix(inner): weights[name] for name in weights if name.startswith(inner)}
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    load = (f"load_from = '{tmp_path}/weights.pth'\n" if how == 'load_from' else
            INNER.format(f"init_cfg=dict(type='Pretrained', checkpoint='{tmp_path}/weights.pth')"))
    assert 'WARNING: ' not in printed(DETECTOR, load + INNER.format('frozen_stages=1, norm_eval=True'))


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_backbones_with_weights_to_load(kind):
    frozen = dict(type='mmdet.ResNet', depth=18, base_channels=4, stem_channels=4, frozen_stages=1)
    loaded = dict(frozen, init_cfg=dict(type=kind, checkpoint='x'))
    model = torch.nn.ModuleDict(dict(a=RKANet(frozen), b=RKANet(loaded)))
    assert [name for name, _ in _kept(model)] == ['a.backbone']
