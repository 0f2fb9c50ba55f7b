"""The staged tree, the card, the plot and the record of a release."""
