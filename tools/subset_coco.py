#!/usr/bin/env python3
"""Write the annotations of a few COCO images, e.g. python tools/subset_coco.py SRC.json DST.json --num-images 8."""

import argparse

from rkan_mm.datasets.subset import subset_coco

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source')
    parser.add_argument('target')
    parser.add_argument('--num-images', type=int, default=8)
    parser.add_argument('--max-instances', type=int, help='leave out images with more, or with crowds')
    args = parser.parse_args()
    print(f'{args.target}: {", ".join(subset_coco(**vars(args)))}')
