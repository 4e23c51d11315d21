#!/usr/bin/env python3
from rkan_mm.apis import infer
from rkan_mm.apis.runner import main

if __name__ == '__main__':
    main(infer.main)
