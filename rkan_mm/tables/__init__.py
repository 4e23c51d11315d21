"""Tables of runs over seeds: what a table is, how its runs are made, how its results are shown."""
