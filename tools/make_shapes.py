#!/usr/bin/env python3
"""Make the shapes data set, e.g. python tools/make_shapes.py data/shapes."""

import argparse

from rkan_mm.datasets.shapes import make_shapes

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('root', nargs='?', default='data/shapes')
    parser.add_argument('--num-train', type=int, default=600)
    parser.add_argument('--num-val', type=int, default=100)
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--seed', type=int, default=0)
    print(f'{make_shapes(**vars(parser.parse_args()))} is ready')
