"""What a run hands over: the data-set folder and the report."""
