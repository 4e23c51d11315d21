#!/usr/bin/env python3
from rkan_mm.apis import export
from rkan_mm.apis.runner import main

if __name__ == '__main__':
    main(export.main)
