"""What is said where COCO is not at hand."""
data_hint = ('Get COCO 2017 (train2017, val2017, annotations) from https://cocodataset.org/#download into data/coco/, '
             'or name yours: --cfg-options data_root=path/to/coco/')
