#!/usr/bin/env python3
from rkan_mm.apis.runner import main, train

if __name__ == '__main__':
    main(train)
