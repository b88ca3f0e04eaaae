"""One page of any number of runs: tables, curves, failures, comparisons and how they were made."""
