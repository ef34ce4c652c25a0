"""Checks of a data set before a run, so that a mistake is answered at once and not in the third hour."""
