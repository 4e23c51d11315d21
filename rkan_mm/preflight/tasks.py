"""Pictures with labels for several tasks, beside the heads of these."""

from __future__ import annotations

from typing import Any

import numpy as np

from .annotations import some
from .classification import check_numbered
from .config import is_mm
from .red import warn_in_red


def check_tasks(dataset: Any, head: Any, what: str) -> None:
    """Compare the labels that mmpretrain's MultiTaskDataset has for each task with the head of that task.

    A head without any label is told in red.

    Raises:
        PreflightError: a label that the head of its task has no class for.
    """
    heads = getattr(head, 'task_heads', None)
    if heads is None or type(dataset).__name__ != 'MultiTaskDataset' or not is_mm(type(dataset)):
        return
    known = sorted({task for info in dataset.data_list for task in info['gt_label']})
    for task, each in heads.items():
        if task in known:
            check_numbered(_Task(dataset, task), getattr(each, 'num_classes', None))
        else:
            warn_in_red(f'MultiTaskDataset of the {what} has no label for the task {task!r} of the head, but for '
                        f'{some(known)}: {"it cannot be learned" if what == "train" else "its figures will be 0"}.')


class _Task:
    """The pictures of a data set that have a label for a task, with it."""

    def __init__(self, dataset: Any, task: str) -> None:
        self.name = f'{type(dataset).__name__}, task {task!r}'
        self.infos = [{**info, 'gt_label': info['gt_label'][task]} for info in dataset.data_list
                      if task in info['gt_label']]

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, i: int) -> dict:
        return self.infos[i]

    def get_cat_ids(self, i: int) -> list[int]:
        return np.atleast_1d(self.infos[i]['gt_label']).tolist()
