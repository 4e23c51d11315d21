#!/usr/bin/env python3
from rkan_mm.apis.make_data import shapes
from rkan_mm.apis.runner import main

if __name__ == '__main__':
    main(shapes)
