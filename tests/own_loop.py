"""A loop of a user's own, and the lines of a config that use it."""

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop


@LOOPS.register_module()
class LoopOverSeveral(BaseLoop):
    """Validates on several data sets in turn; `dataloader` is a list."""

    def __init__(self, runner, dataloader, evaluator):
        super().__init__(runner, [runner.build_dataloader(loader) for loader in dataloader])
        self.evaluators = [runner.build_evaluator(metric) for metric in evaluator]

    def run(self):
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.runner.model.eval()
        figures = {}
        for i, (loader, metric) in enumerate(zip(self.dataloader, self.evaluators, strict=True)):
            metric.dataset_meta = loader.dataset.metainfo
            for batch in loader:
                metric.process(data_samples=self.runner.model.val_step(batch), data_batch=batch)
            figures |= {f'{i}/{key}': value for key, value in metric.evaluate(len(loader.dataset)).items()}
        self.runner.call_hook('after_val_epoch', metrics=figures)
        self.runner.call_hook('after_val')
        return figures


SEVERAL = """
val_dataloader = [val_dataloader, dict(val_dataloader, batch_size=3)]
val_evaluator = [val_evaluator, [val_evaluator]]
val_cfg = dict(type='LoopOverSeveral')"""
