#!/usr/bin/env python3
from rkan_mm.apis.runner import main, test

if __name__ == '__main__':
    main(test)
