"""The staged tree, the plot, the record of a release."""
