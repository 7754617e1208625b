"""The README's table of whole papers, from the result files that the examples' grids wrote."""
