#!/usr/bin/env python3
from rkan_mm.apis.runner import main
from rkan_mm.benchmarks import gpu

if __name__ == '__main__':
    main(gpu.main)
