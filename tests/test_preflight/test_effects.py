"""Runs that would come to nothing, or to figures of other data, are stopped or told in red."""

import cv2
import numpy as np
import pytest
from small_runs import CLASSIFIER, DETECTOR, make_pictures
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from rkan_mm.apis import runner
from rkan_mm.engine import RunError
from rkan_mm.preflight import PreflightError, effects
from rkan_mm.preflight.images import look_at
from rkan_mm.tables.table import NOTE, locked


@pytest.fixture
def train(small_data, tmp_path):
    """Train one of the small configs; returns what was printed."""
    texts = {'det': DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))),
             'cls': CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures')))}

    def run(name, *options, flags=()):
        (tmp_path / f'{name}.py').write_text(texts[name])
        return runner.train([str(tmp_path / f'{name}.py'), '--work-dir', str(tmp_path / 'work'), *flags,
                             *(['--cfg-options', *options] if options else [])])
    return run


RED = {
    'no checkpoint': (['default_hooks.checkpoint.interval=0', 'default_hooks.checkpoint.save_last=False'],
                      'No checkpoint will be kept: default_hooks.checkpoint has interval=0, save_last=False and no'),
    'a late checkpoint': (['default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.save_last=False'],
                          'No checkpoint will be kept: default_hooks.checkpoint has interval=2, save_last=False and'),
    'a checkpoint from a later epoch on': (
        ['default_hooks.checkpoint.save_begin=2', 'default_hooks.checkpoint.save_last=False'],
        'No checkpoint will be kept: default_hooks.checkpoint has interval=1, save_begin=2, save_last=False and no'),
    'no best checkpoint': (
        ['default_hooks.checkpoint.interval=-1', 'default_hooks.checkpoint.save_last=False', 'val_cfg=None',
         'default_hooks.checkpoint.save_best=auto', 'val_dataloader=None', 'val_evaluator=None'],
        'No checkpoint will be kept: default_hooks.checkpoint has interval=-1, save_last=False and save_best without'),
    'no best checkpoint, since the first validation lies behind the end': (
        ['default_hooks.checkpoint.interval=-1', 'default_hooks.checkpoint.save_last=False', 'train_cfg.val_begin=2',
         'default_hooks.checkpoint.save_best=coco/bbox_mAP'],
        'No checkpoint will be kept: default_hooks.checkpoint has interval=-1, save_last=False and save_best without'),
    'no early stop': (
        ['custom_hooks.0.type=EarlyStoppingHook', 'custom_hooks.0.monitor=coco/bbox_mAP', 'val_cfg=None',
         'val_dataloader=None', 'val_evaluator=None'], 'EarlyStoppingHook waits for a validation, and there is none.'),
    'no step': (['optim_wrapper.optimizer.lr=0'],
                'Nothing will be learned: the lr of all parameters is 0, by optim_wrapper.'),
    'no step by its parts': (
        [f'optim_wrapper.paramwise_cfg.custom_keys.{part}.lr_mult=0' for part in ('backbone', 'neck', 'bbox_head')],
        'Nothing will be learned: the lr of all parameters is 0, by optim_wrapper.'),
    'no step of what is not frozen': (
        ['model.backbone.backbone.frozen_stages=4', 'optim_wrapper.paramwise_cfg.custom_keys.neck.lr_mult=0',
         'optim_wrapper.paramwise_cfg.custom_keys.bridges.lr_mult=0',
         'optim_wrapper.paramwise_cfg.custom_keys.bbox_head.lr_mult=0'],
        'Nothing will be learned: the lr of all parameters is 0, by optim_wrapper.'),
    'no gradient': (['optim_wrapper.clip_grad.max_norm=0'], 'optim_wrapper.clip_grad.max_norm=0 makes all gradients 0'),
    'no gradient by value': (['optim_wrapper.clip_grad.type=value', 'optim_wrapper.clip_grad.clip_value=0'],
                             'optim_wrapper.clip_grad.clip_value=0 makes all gradients 0'),
    'an lr for the pictures of an iteration': (
        ['auto_scale_lr.enable=True', 'auto_scale_lr.base_batch_size=2', 'optim_wrapper.accumulative_counts=2'],
        '--auto-scale-lr scales the lr to 2 pictures, those of an iteration, and each step is made of 4'),
    'parts of a model that are not there': (
        ['optim_wrapper.paramwise_cfg.custom_keys.bakbone.lr_mult=0.1'],
        'optim_wrapper.paramwise_cfg.custom_keys (bakbone) are part of no name of a parameter, and change nothing: '
        'names begin with backbone, neck, bbox_head.'),
    'checkpoints by epochs of a training by iterations': (
        ['train_cfg._delete_=True', 'train_cfg.by_epoch=False', 'train_cfg.max_iters=1'],
        'default_hooks.checkpoint counts epochs (by_epoch=True), and this training counts iterations: none is kept '
        'before its end. Write by_epoch=False, and interval in iterations.'),
    'validated by what it learned': (
        ['train_dataloader.dataset.ann_file=annotations/val.json', 'train_dataloader.dataset.data_prefix.img=val'],
        '2 of 2 images of the training that were looked up are in the validation as well, such as '),
}


@pytest.mark.parametrize('case', RED)
def test_in_red(train, capsys, case):
    options, said = RED[case]
    train('det', *options)
    assert f'{said}' in capsys.readouterr().out.replace('WARNING: ', '')


def test_a_sound_run_says_nothing(train, capsys):
    train('det')
    assert 'WARNING: ' not in capsys.readouterr().out


def test_a_second_training_in_a_work_dir(train, tmp_path, capsys):
    work, said = tmp_path / 'work', 'WARNING: Another process is training in'
    work.mkdir()
    with locked(work):
        train('cls')
    assert said in capsys.readouterr().out
    train('cls')
    (work / NOTE).touch()
    with locked(work):  # by the table that the run is of
        train('cls')
    assert said not in capsys.readouterr().out


SLOWED = [f'optim_wrapper.paramwise_cfg.custom_keys.{part}.lr_mult=0' for part in ('backbone', 'neck')]


def test_a_part_that_is_not_trained_says_nothing(train, capsys):
    train('det', *SLOWED)
    assert 'WARNING: ' not in capsys.readouterr().out


def test_going_on_with_what_the_checkpoint_has(train, capsys):
    train('cls')
    capsys.readouterr()
    train('cls', flags=['--resume'])
    assert ('WARNING: Nothing is left to train: 1 epochs are done, and train_cfg.max_epochs is 1. To go on, raise it.'
            in capsys.readouterr().out)
    done = train('cls', 'train_cfg.max_epochs=2', 'optim_wrapper.optimizer.lr=0.5', flags=['--resume'])
    assert ('WARNING: --resume goes on with the lr of the checkpoint, 0.01; that of the config, 0.5, changes nothing.'
            in capsys.readouterr().out)
    assert done.optim_wrapper.param_groups[0]['lr'] == 0.01
    with pytest.raises(PreflightError, match='is another than AdamW: it has no betas, eps. Resume with the optimizer'):
        train('cls', 'train_cfg.max_epochs=3', 'optim_wrapper.optimizer.type=AdamW', flags=['--resume'])


def test_an_epoch_without_an_end(train):
    with pytest.raises(PreflightError, match='The first epoch of the training would never end: its sampler is an Inf'):
        train('cls', 'train_dataloader.sampler.type=InfiniteSampler')
    train('cls', 'train_dataloader.sampler.type=InfiniteSampler', 'train_cfg._delete_=True',
          'train_cfg.type=IterBasedTrainLoop', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')


def test_a_validation_of_some_images_several_times(train):
    with pytest.raises(PreflightError, match='The validation would take some images several times '
                                             'and others never: its sampler is a RepeatAugSampler. Give sampler=dict'):
        train('cls', 'val_dataloader.sampler.type=RepeatAugSampler')
    train('cls', 'train_dataloader.sampler.type=RepeatAugSampler')


def test_a_last_batch_of_one_image(train):
    """With 32 pixels and a stride of 32 the last norms see one pixel; with 64 they see four."""
    with pytest.raises(PreflightError, match='The last of 2 batches has one image, and a batch norm for 32 channels '
                                             'sees one pixel of it'):
        train('cls', 'train_dataloader.batch_size=5')
    train('cls', 'train_dataloader.batch_size=5', 'train_dataloader.drop_last=True')


def test_a_batch_sampler_that_leaves_no_batch(train):
    with pytest.raises(PreflightError, match='batch_size=3 with drop_last=True leaves no batch of 2 images'):
        train('det', 'train_dataloader.batch_sampler.type=AspectRatioBatchSampler', 'train_dataloader.batch_size=3',
              'train_dataloader.batch_sampler.drop_last=True')


def test_a_batch_sampler_with_several_sizes():
    """As mmdet's for several data sets has them."""
    loader = DataLoader([1, 2, 3], batch_sampler=BatchSampler(SequentialSampler([1, 2, 3]), 2, True))
    loader.batch_sampler.batch_size = [1, 1]
    effects._check_batches(loader)
    effects.watch_small_maps(nn.BatchNorm2d(1), loader)()


def test_iterations_that_are_validated_late(train):
    """What such a validation would fail at comes out, too."""
    late = ['train_cfg._delete_=True', 'train_cfg.type=IterBasedTrainLoop', 'train_cfg.max_iters=4',
            'train_cfg.val_begin=3', 'default_hooks.checkpoint.by_epoch=False']
    with pytest.raises(PreflightError, match='waits for coco/AP, and the validation gives coco/bbox_mAP'):
        train('det', *late, 'default_hooks.checkpoint.save_best=coco/AP', 'default_hooks.checkpoint.rule=greater')


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda path: path.write_bytes(path.read_bytes()[:60]), 'CustomDataset of the train: .*0.png is truncated or no'),
    (lambda path: path.write_bytes(b''), '0.png is truncated or no picture: get it anew, or take it out. To run all')
])
def test_torn_pictures_of_a_classifier(train, tmp_path, spoil, message):
    spoil(make_pictures(tmp_path / 'torn') / 'train/dog/0.png')
    with pytest.raises(PreflightError, match=message):
        train('cls', f'data_root={tmp_path / "torn"}')


def test_pictures_that_a_list_names_and_that_are_not_there(train, tmp_path):
    (tmp_path / 'list.txt').write_text('cat/0.png 0\ndog/9.png 1\nowl/8.png 2\n')
    with pytest.raises(PreflightError, match=r'dog/9.png, .*owl/8.png is not there \(2 are so\): check data_prefix'):
        train('cls', f'train_dataloader.dataset.ann_file={tmp_path / "list.txt"}')


def test_a_picture_that_breaks_in_the_midst_of_a_run(train, tmp_path):
    """What the checks did not see ends in one sentence, too."""
    folder = make_pictures(tmp_path / 'torn')
    torn = folder / 'train/dog/1.png'
    torn.write_bytes(torn.read_bytes()[:60])
    with pytest.raises(RunError, match=r'dog/1.png cannot be read: mend it or take it out, then go on with --resume'):
        train('cls', f'data_root={folder}', 'preflight.images=False', 'train_dataloader.sampler.shuffle=False',
              'train_dataloader.batch_size=1', 'model.backbone.frozen_stages=4', 'model.backbone.norm_eval=True')


def test_a_torn_jpeg(tmp_path):
    path = tmp_path / 'a.jpg'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert look_at(path) == (64, 64, 0)
    path.write_bytes(path.read_bytes() + bytes(200))  # padding behind the end does no harm
    assert look_at(path) == (64, 64, 0)
    path.write_bytes(path.read_bytes()[:1000])
    assert look_at(path) is None
