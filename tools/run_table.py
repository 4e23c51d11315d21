#!/usr/bin/env python3
from rkan_mm.apis.runner import main
from rkan_mm.tables.run import run_table

if __name__ == '__main__':
    main(run_table)
